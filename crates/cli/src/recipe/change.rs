//! Changes of settings: tables on top of tables, and `key.key=value`.

use densely_core::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::sentence;

/// Puts the values of `changes` in place of those of `base`; tables are merged, everything else replaced.
pub(super) fn merge(base: &mut Table, changes: Table) {
    for (key, value) in changes {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(base)), Value::Table(changes)) => merge(base, changes),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Puts a setting of a recipe in place of a suggested one. Tables are merged, but for those that choose a kind by `name`, which say all of it.
pub(super) fn replace(table: &mut Table, key: &str, value: &Value) {
    match (table.get_mut(key), value) {
        (Some(Value::Table(base)), Value::Table(own)) if !own.contains_key("name") => {
            for (key, value) in own {
                replace(base, key, value);
            }
        }
        _ => {
            table.insert(key.to_owned(), value.clone());
        }
    }
}

/// `settings` with `changes` of the form `key.key=value`.
///
/// # Errors
/// [`Error::Config`] for a change that is not one, or that does not fit.
pub(crate) fn changed<T: Serialize + DeserializeOwned>(
    settings: &T,
    changes: &[String],
) -> Result<T> {
    let mut table =
        Table::try_from(settings).map_err(|e| Error::config("settings", e.to_string()))?;
    for change in changes {
        set(&mut table, change)?;
    }
    table
        .try_into()
        .map_err(|e: toml::de::Error| Error::config("settings", sentence(&e)))
}

/// Applies `key.key=value`, where the value is TOML; a word without quotes is a text.
pub(crate) fn set(table: &mut Table, change: &str) -> Result<()> {
    let wrong = |reason: String| Error::config("--set", reason);
    let (key, value) = change
        .split_once('=')
        .filter(|(key, _)| key.split('.').all(|part| !part.trim().is_empty()))
        .ok_or_else(|| wrong(format!("must be key.key=value, got `{change}`")))?;
    let value = toml::from_str::<Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(value.trim().to_owned()));
    let mut parts: Vec<&str> = key.split('.').map(str::trim).collect();
    let last = parts.pop().unwrap_or_default();
    let mut place = table;
    for part in parts {
        let next = place
            .entry(part)
            .or_insert_with(|| Value::Table(Table::new()));
        place = match next {
            Value::Table(next) => next,
            _ => return Err(wrong(format!("`{part}` in `{key}` is not a table"))),
        };
    }
    place.insert(last.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_reach_their_place_and_nonsense_is_refused() {
        let mut table: Table =
            toml::from_str("[train]\nepochs = 3\n[train.optimizer]\nname = \"sgd\"\n")
                .expect("TOML");
        set(&mut table, "train.epochs=7").expect("a number");
        set(&mut table, "train.optimizer.name=adamw").expect("a word");
        set(&mut table, "seeds=[1, 2]").expect("a list");
        let expected = "seeds = [1, 2]\n[train]\nepochs = 7\n[train.optimizer]\nname = \"adamw\"\n";
        assert_eq!(table, toml::from_str::<Table>(expected).expect("TOML"));
        for wrong in ["train", "=1", "train..x=1", "train.epochs.x=1"] {
            assert!(set(&mut table, wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn quick_changes_only_what_it_names() {
        let mut base: Table = toml::from_str("a = 1\n[b]\nc = 2\nd = 3\n").expect("TOML");
        merge(&mut base, toml::from_str("[b]\nd = 4\n").expect("TOML"));
        assert_eq!(
            base,
            toml::from_str::<Table>("a = 1\n[b]\nc = 2\nd = 4\n").expect("TOML")
        );
    }
}
