//! `cases.jsonl`: what each fact of a study is edited to and judged by, so that all of its edits are of the same.
//!
//! New answers and neighbours are drawn from the whole list. Another list or seed draws others for facts that were edited before: rows of the
//! two would stand in one table as if they were of one kind.

use std::collections::BTreeMap;
use std::path::Path;

use densely_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Case, Neighbour};
use crate::journal::Journal;

/// Layout of the file.
const FORMAT: u64 = 1;

/// What a case holds beside its fact, which is in the traces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Asked {
    id: String,
    new: Option<String>,
    paraphrase: Option<String>,
    neighbour: Option<Neighbour>,
}

impl Asked {
    fn of(case: &Case) -> Self {
        Self {
            id: case.fact.id.clone(),
            new: case.new.clone(),
            paraphrase: case.paraphrase.clone(),
            neighbour: case.neighbour.clone(),
        }
    }

    /// The parts by name, in words.
    fn parts(&self) -> [(&'static str, String); 3] {
        let shown = |text: Option<&str>| match text {
            Some(text) => format!("{text:?}"),
            None => "none".to_owned(),
        };
        let neighbour = self.neighbour.as_ref();
        let neighbour = neighbour.map(|other| format!("{} {}", other.prompt, other.answer));
        [
            ("new answer", shown(self.new.as_deref())),
            ("paraphrase", shown(self.paraphrase.as_deref())),
            ("neighbour", shown(neighbour.as_deref())),
        ]
    }
}

/// The file, open for appending.
#[derive(Debug)]
pub(super) struct Cases {
    journal: Journal,
    known: BTreeMap<String, Asked>,
}

impl Cases {
    /// Opens the file at `path`, or begins it, and compares what it holds with the cases of now.
    ///
    /// # Errors
    /// [`Error::Config`] when another process has it open, or naming the fact and the part that differs; [`Error::Corrupt`]; [`Error::Io`].
    pub(super) fn open<'c>(path: &Path, cases: impl Iterator<Item = &'c Case>) -> Result<Self> {
        let settings = json!({ "format": FORMAT });
        let (journal, rows) = Journal::open_json::<Asked>(path, &settings, true)?;
        let known: BTreeMap<String, Asked> =
            rows.into_iter().map(|row| (row.id.clone(), row)).collect();
        for case in cases {
            let Some(begun) = known.get(&case.fact.id) else {
                continue;
            };
            let now = Asked::of(case).parts();
            let mut pairs = begun.parts().into_iter().zip(now);
            if let Some(((name, old), (_, new))) = pairs.find(|(old, new)| old != new) {
                let reason = format!(
                    "the {name} of fact {:?} was {old} when it was first edited, and is {new} now; take the list and the seed of then, or another folder",
                    case.fact.id
                );
                return Err(Error::config("facts", reason));
            }
        }
        Ok(Self { journal, known })
    }

    /// Writes down a case that is about to be edited, where that was not done before.
    pub(super) fn keep(&mut self, case: &Case) -> Result<()> {
        if self.known.contains_key(&case.fact.id) {
            return Ok(());
        }
        let asked = Asked::of(case);
        self.journal.append_json(&asked)?;
        self.known.insert(asked.id.clone(), asked);
        Ok(())
    }
}
