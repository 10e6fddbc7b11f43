//! MovieLens-100K as clicks: 100,000 ratings with users, films and times; Harper and Konstan 2015, doi 10.1145/2827872.
//!
//! A rating of 4 or 5 is a click. Histories are the films that the user clicked before, by time, and their genres beside.

use std::collections::HashMap;
use std::path::Path;

use densely_core::{Error, Result};
use densely_data::table::{MISSING, Table};
use densely_data::{Output, write_columns};

use crate::histories::histories;

/// Films of a history that are kept.
const MOST: usize = 50;
/// From which rating on a film counts as clicked.
pub const CLICK_FROM: f64 = 4.0;
/// Ages at which a bucket begins, as the larger sets of the same source have them.
const AGES: [i64; 7] = [0, 18, 25, 35, 45, 50, 56];
const GENRES: [&str; 19] = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
];

/// Writes the table for training to `into` (CSV, TSV or Parquet), in the order of time, from the files `ratings`, `users` and `items` in `folder`, each with
/// the ending `.parquet`.
///
/// Columns: `user_id`, `age` (the bucket's first year), `gender`, `occupation`, `zip` (its first letter), `movie_id`, `genres` (all of a
/// film as one token), `year`, `history` and `history_genres` (with `^` between), `rating`, `timestamp`.
/// # Errors
/// Those of reading; [`Error::Data`] for a rating whose user or film is not there.
pub fn prepare(folder: &Path, into: &Path) -> Result<()> {
    let open = |name: &str| Table::open(&folder.join(format!("{name}.parquet")));
    write_columns(
        into,
        &columns(&open("ratings")?, &open("users")?, &open("items")?)?,
    )
}

fn columns(ratings: &Table, users: &Table, items: &Table) -> Result<Vec<(String, Output)>> {
    let user_ids = whole(ratings, "user_id")?;
    let movie_ids = whole(ratings, "movie_id")?;
    let rating = ratings.numbers("rating")?;
    let times = whole(ratings, "timestamp")?;
    let user_of = rows_of(users, "user_id", ratings, &user_ids)?;
    let item_of = rows_of(items, "movie_id", ratings, &movie_ids)?;

    let genres = genres(items)?;
    let years: Vec<String> = texts(items, "release_date")?
        .iter()
        .map(|date| date.rsplit('-').next().unwrap_or_default().to_owned())
        .collect();
    let ages = whole(users, "age")?;
    let ages: Vec<String> = ages
        .iter()
        .map(|age| {
            AGES.iter()
                .rfind(|from| *from <= age)
                .unwrap_or(&0)
                .to_string()
        })
        .collect();
    let zips: Vec<String> = texts(users, "zip_code")?
        .iter()
        .map(|zip| zip.chars().take(1).collect())
        .collect();

    let mut order: Vec<usize> = (0..ratings.row_count()).collect();
    order.sort_by_key(|row| (times[*row], *row));
    let clicked: Vec<bool> = rating.iter().map(|rating| *rating >= CLICK_FROM).collect();
    let of_user: Vec<u32> = user_of.iter().map(|row| *row as u32).collect();
    let before = histories(&of_user, &times, &clicked, MOST);
    let joined = |row: usize, text: &dyn Fn(usize) -> String| {
        let parts: Vec<String> = before[row].iter().map(|click| text(*click)).collect();
        parts.join("^")
    };
    let column = |name: &str, text: &dyn Fn(usize) -> String| {
        let values = order.iter().map(|row| text(*row)).collect();
        (name.to_owned(), Output::Texts(values))
    };
    let (genders, occupations) = (texts(users, "gender")?, texts(users, "occupation")?);
    Ok(vec![
        column("user_id", &|row| user_ids[row].to_string()),
        column("age", &|row| ages[user_of[row]].clone()),
        column("gender", &|row| genders[user_of[row]].clone()),
        column("occupation", &|row| occupations[user_of[row]].clone()),
        column("zip", &|row| zips[user_of[row]].clone()),
        column("movie_id", &|row| movie_ids[row].to_string()),
        column("genres", &|row| genres[item_of[row]].clone()),
        column("year", &|row| years[item_of[row]].clone()),
        column("history", &|row| {
            joined(row, &|click| movie_ids[click].to_string())
        }),
        column("history_genres", &|row| {
            joined(row, &|click| genres[item_of[click]].clone())
        }),
        column("rating", &|row| rating[row].to_string()),
        column("timestamp", &|row| times[row].to_string()),
    ])
}

/// All genres of each film, with `|` between.
fn genres(items: &Table) -> Result<Vec<String>> {
    let mut genres = vec![Vec::new(); items.row_count()];
    for genre in GENRES {
        for (film, flag) in genres.iter_mut().zip(items.numbers(genre)?) {
            if flag > 0.0 {
                film.push(genre);
            }
        }
    }
    Ok(genres.into_iter().map(|film| film.join("|")).collect())
}

pub(crate) fn whole(table: &Table, column: &str) -> Result<Vec<i64>> {
    let whole = |(row, value): (usize, f64)| {
        if value.fract() == 0.0 {
            Ok(value as i64)
        } else {
            Err(table.error(column, row, format!("expected a whole number, got {value}")))
        }
    };
    table
        .numbers(column)?
        .into_iter()
        .enumerate()
        .map(whole)
        .collect()
}

fn texts(table: &Table, column: &str) -> Result<Vec<String>> {
    let (codes, names) = table.texts(column)?;
    let text = |code: &u32| match *code {
        MISSING => String::new(),
        code => names[code as usize].clone(),
    };
    Ok(codes.iter().map(text).collect())
}

/// For each of `wanted` the row of `table` whose `column` is equal.
fn rows_of(table: &Table, column: &str, from: &Table, wanted: &[i64]) -> Result<Vec<usize>> {
    let rows: HashMap<i64, usize> = whole(table, column)?.into_iter().zip(0..).collect();
    let row = |(at, id): (usize, &i64)| {
        rows.get(id).copied().ok_or_else(|| -> Error {
            let reason = format!("{id} is not in {}", table.path().display());
            from.error(column, at, reason)
        })
    };
    wanted.iter().enumerate().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use densely_data::table::{Column, Values};

    fn numbers(name: &str, values: &[f64]) -> Column {
        Column {
            name: name.to_owned(),
            values: Values::Number {
                values: values.to_vec(),
                integral: true,
            },
        }
    }

    fn words(name: &str, values: &[&str]) -> Column {
        Column {
            name: name.to_owned(),
            values: Values::Text {
                codes: (0..values.len() as u32).collect(),
                names: values.iter().map(|text| (*text).to_owned()).collect(),
            },
        }
    }

    #[test]
    fn rows_stand_by_time_with_what_was_liked_before() -> Result<()> {
        let table = |columns| Table::from_columns(Path::new("made"), columns);
        let ratings = table(vec![
            numbers("user_id", &[7.0, 7.0, 7.0, 8.0]),
            numbers("movie_id", &[1.0, 2.0, 3.0, 1.0]),
            numbers("rating", &[5.0, 4.0, 3.0, 2.0]),
            numbers("timestamp", &[300.0, 100.0, 200.0, 50.0]),
        ])?;
        let users = table(vec![
            numbers("user_id", &[7.0, 8.0]),
            numbers("age", &[24.0, 56.0]),
            words("gender", &["F", "M"]),
            words("occupation", &["writer", "other"]),
            words("zip_code", &["85711", "T8H1N"]),
        ])?;
        let mut films = vec![
            numbers("movie_id", &[1.0, 2.0, 3.0]),
            words(
                "release_date",
                &["01-Jan-1995", "02-Feb-1996", "03-Mar-1997"],
            ),
        ];
        for genre in GENRES {
            let flags = match genre {
                "Comedy" => [1.0, 1.0, 0.0],
                "Drama" => [0.0, 1.0, 1.0],
                _ => [0.0; 3],
            };
            films.push(numbers(genre, &flags));
        }
        let columns = columns(&ratings, &users, &table(films)?)?;
        let column = |name: &str| match columns.iter().find(|(other, _)| other == name) {
            Some((_, Output::Texts(values))) => values.clone(),
            _ => panic!("no column {name}"),
        };
        assert_eq!(column("movie_id"), ["1", "2", "3", "1"]);
        assert_eq!(column("history"), ["", "", "2", "2"]);
        assert_eq!(
            column("history_genres"),
            ["", "", "Comedy|Drama", "Comedy|Drama"]
        );
        assert_eq!(
            column("genres"),
            ["Comedy", "Comedy|Drama", "Drama", "Comedy"]
        );
        assert_eq!(column("age"), ["56", "18", "18", "18"]);
        assert_eq!((&*column("zip")[0], &*column("year")[1]), ("T", "1996"));
        Ok(())
    }
}
