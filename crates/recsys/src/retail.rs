//! Online Retail II as purchases with times: a British shop's invoices of two years; Chen 2019, doi 10.24432/C5CG6D.
//!
//! Each purchase is a click; beside it stands one item that the customer never bought, drawn from all items that the shop had sold
//! before, so that popularity alone does not give it away as much as a draw from all items would.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use densely_core::{Error, Result};
use densely_data::table::{MISSING, Table, Values, parse_time};
use densely_data::{Output, write_columns};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::histories::histories;

/// Items of a history that are kept.
const MOST: usize = 50;
/// Draws after which a row stays without its counterpart.
const TRIES: usize = 100;

/// Writes the table for training to `into` from the shop's `table` with the columns `Invoice`, `StockCode`, `Quantity`, `InvoiceDate`,
/// `Customer ID` and `Country`. Rows without a customer and returns (quantities below 1) are left out.
///
/// Columns: `customer`, `country`, `item`, `history` (with `^` between), `time` (microseconds), `bought`.
/// # Errors
/// Those of reading; [`Error::Data`] when no row is left.
pub fn prepare(table: &Path, into: &Path, seed: u64) -> Result<()> {
    let table = Table::open(table)?;
    write_columns(into, &columns(&table, seed)?)
}

fn columns(table: &Table, seed: u64) -> Result<Vec<(String, Output)>> {
    let (customers, customer_names) = table.texts("Customer ID")?;
    let (items, item_names) = table.texts("StockCode")?;
    let (countries, country_names) = table.texts("Country")?;
    let quantities = table.numbers("Quantity")?;
    let times = times(table)?;
    let mut rows: Vec<usize> = (0..table.row_count())
        .filter(|row| customers[*row] != MISSING && items[*row] != MISSING)
        .filter(|row| quantities[*row] >= 1.0 && times[*row] != i64::MIN)
        .collect();
    if rows.is_empty() {
        return Err(Error::data(
            table.path(),
            "no row has a customer, an item, a time and a quantity",
        ));
    }
    rows.sort_by_key(|row| (times[*row], *row));
    let mut bought: HashMap<u32, HashSet<u32>> = HashMap::new();
    for row in &rows {
        bought
            .entry(customers[*row])
            .or_default()
            .insert(items[*row]);
    }
    // The same item twice on one invoice is one purchase.
    let mut seen = HashSet::new();
    rows.retain(|row| seen.insert((customers[*row], times[*row], items[*row])));

    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut sold: Vec<u32> = Vec::new();
    let mut known = HashSet::new();
    // Row of the table, item, bought.
    let mut shown: Vec<(usize, u32, bool)> = Vec::new();
    for row in rows {
        shown.push((row, items[row], true));
        let own = &bought[&customers[row]];
        let draw = (0..TRIES.min(sold.len() * TRIES))
            .map(|_| sold[rng.random_range(0..sold.len())])
            .find(|item| !own.contains(item));
        shown.extend(draw.map(|item| (row, item, false)));
        if known.insert(items[row]) {
            sold.push(items[row]);
        }
    }
    let users: Vec<u32> = shown.iter().map(|(row, ..)| customers[*row]).collect();
    let when: Vec<i64> = shown.iter().map(|(row, ..)| times[*row]).collect();
    let clicked: Vec<bool> = shown.iter().map(|(.., bought)| *bought).collect();
    let before = histories(&users, &when, &clicked, MOST);
    let name = |names: &[String], code: u32| names.get(code as usize).cloned().unwrap_or_default();
    let column = |title: &str, text: &dyn Fn(usize) -> String| {
        let values = (0..shown.len()).map(text).collect();
        (title.to_owned(), Output::Texts(values))
    };
    Ok(vec![
        column("customer", &|at| name(&customer_names, users[at])),
        column("country", &|at| {
            name(&country_names, countries[shown[at].0])
        }),
        column("item", &|at| name(&item_names, shown[at].1)),
        column("history", &|at| {
            let items = before[at]
                .iter()
                .map(|click| name(&item_names, shown[*click].1));
            items.collect::<Vec<_>>().join("^")
        }),
        column("time", &|at| when[at].to_string()),
        column("bought", &|at| u8::from(clicked[at]).to_string()),
    ])
}

/// Microseconds; `i64::MIN` where missing. The shop's file writes month, day, year.
fn times(table: &Table) -> Result<Vec<i64>> {
    const NAME: &str = "InvoiceDate";
    let column = table.column(NAME)?;
    let (codes, names) = match &column.values {
        Values::Time(times) => return Ok(times.clone()),
        Values::Text { codes, names } => (codes, names),
        Values::Number { .. } => {
            let reason = "expected times like 12/1/2009 7:45, got numbers";
            return Err(Error::column(table.path(), NAME, reason));
        }
    };
    let known: Vec<Option<i64>> = names.iter().map(|text| american_time(text)).collect();
    let time = |(row, code): (usize, &u32)| match known.get(*code as usize) {
        None => Ok(i64::MIN),
        Some(Some(time)) => Ok(*time),
        Some(None) => {
            let text = &names[*code as usize];
            let reason = format!("expected a time like 12/1/2009 7:45, got `{text}`");
            Err(table.error(NAME, row, reason))
        }
    };
    codes.iter().enumerate().map(time).collect()
}

/// `12/1/2009 7:45`: the first of December.
fn american_time(text: &str) -> Option<i64> {
    let (date, time) = text.split_once(' ')?;
    let mut parts = date.split('/');
    let (month, day, year) = (parts.next()?, parts.next()?, parts.next()?);
    parse_time(&format!("{year}/{month}/{day} {time}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_stand_before_days() {
        assert_eq!(
            american_time("12/1/2009 7:45"),
            parse_time("2009-12-01 07:45")
        );
        assert_eq!(american_time("13/1/2009 7:45"), None);
        assert_eq!(american_time("12/1/2009"), None);
    }

    #[test]
    fn purchases_have_counterparts_and_histories_from_before() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
        let (from, into) = (
            folder.path().join("shop.csv"),
            folder.path().join("clicks.csv"),
        );
        let mut text = "Invoice,StockCode,Quantity,InvoiceDate,Customer ID,Country\n".to_owned();
        for day in 1..=9 {
            for (customer, item) in [("17", day % 3), ("18", 3 + day % 4)] {
                let line = format!("5,i{item},2,1/{day}/2010 8:00,{customer},France\n");
                text.push_str(&line);
            }
        }
        text += "6,i9,-1,1/10/2010 8:00,17,France\n7,i8,1,1/10/2010 8:00,,France\n";
        std::fs::write(&from, text).map_err(Error::io(&from))?;
        prepare(&from, &into, 1)?;
        let table = Table::open(&into)?;
        let bought = table.numbers("bought")?;
        let purchases = bought.iter().filter(|b| **b > 0.0).count();
        assert_eq!(
            purchases, 18,
            "returns and rows without a customer are gone"
        );
        assert!(bought.len() > 30, "nearly all have a counterpart");
        let (codes, names) = table.texts("item")?;
        let (customers, customer_names) = table.texts("customer")?;
        for row in 0..bought.len() {
            let own = match &*customer_names[customers[row] as usize] {
                "17" => ["i0", "i1", "i2"].contains(&&*names[codes[row] as usize]),
                _ => ["i3", "i4", "i5", "i6"].contains(&&*names[codes[row] as usize]),
            };
            assert_eq!(own, bought[row] > 0.0, "row {row}");
        }
        let (histories, lists) = table.texts("history")?;
        let last = &lists[histories[bought.len() - 1] as usize];
        assert_eq!(last.split('^').count(), 8, "{last}");
        Ok(())
    }
}
