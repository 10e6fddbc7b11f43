//! What each user clicked before each row: histories without a look ahead.

use std::collections::HashMap;

/// For each row the earlier clicks of its user, oldest first and the latest `most` of them, as row numbers.
///
/// A click counts as earlier only when its time is: rows of one second never see each other. Rows may stand in any order.
pub fn histories(users: &[u32], times: &[i64], clicked: &[bool], most: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..users.len()).collect();
    order.sort_by_key(|row| times[*row]);
    let mut clicks: HashMap<u32, Vec<usize>> = HashMap::new();
    let mut found = vec![Vec::new(); users.len()];
    for row in order {
        let before = clicks.entry(users[row]).or_default();
        let earlier = before.partition_point(|click| times[*click] < times[row]);
        found[row] = before[earlier.saturating_sub(most)..earlier].to_vec();
        if clicked[row] {
            before.push(row);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_what_came_before_and_no_more() {
        let users = [1, 1, 2, 1, 1, 1];
        let times = [30, 10, 5, 20, 20, 40];
        let clicked = [true, true, true, true, false, true];
        let found = histories(&users, &times, &clicked, 2);
        // Rows 3 and 4 are of one second; row 5 keeps the latest two of three.
        let expected: [&[usize]; 6] = [&[1, 3], &[], &[], &[1], &[1], &[3, 0]];
        assert_eq!(found, expected);
    }
}
