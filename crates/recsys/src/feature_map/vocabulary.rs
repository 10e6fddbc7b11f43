//! Tokens and their ids.

use std::collections::HashMap;

use densely_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::columns::{Column, Dtype, TokenOrder};

/// Most tokens that are counted; beyond, ids come from a hash.
const MOST_TOKENS: usize = 100_000_000;

/// How the tokens of a field become ids. Id 0 is padding, the last id stands for tokens that training did not see.
#[derive(Debug, Clone, PartialEq)]
pub enum Vocabulary {
    /// Known tokens.
    Tokens(Tokens),
    /// Every token has an id from 1 to `buckets`; two may share one.
    Hash {
        /// Ids beside padding and the one for missing values.
        buckets: u32,
    },
    /// The table holds ids below `size`.
    Ids {
        /// Rows of the table.
        size: i64,
    },
}

/// Known tokens with their ids.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tokens {
    ids: HashMap<Box<str>, u32>,
    oov: u32,
    size: u32,
}

/// Why a token has no id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused(pub(super) String);

impl Vocabulary {
    /// Rows of the embedding table.
    pub fn size(&self) -> i64 {
        match self {
            Self::Tokens(tokens) => i64::from(tokens.size),
            Self::Hash { buckets } => i64::from(*buckets) + 2,
            Self::Ids { size } => *size,
        }
    }

    /// The id of `token`; that of unknown tokens for one that training did not see.
    ///
    /// # Errors
    /// [`Error::Config`] for a column of ids whose token is no id of the table.
    pub fn id(&self, token: &str) -> Result<i64> {
        let id = self.lookup(token);
        id.map(i64::from)
            .map_err(|refused| Error::config("token", refused.0))
    }

    /// The id of tokens that training did not see; columns of ids have none.
    pub fn unknown(&self) -> Option<i64> {
        match self {
            Self::Tokens(tokens) => Some(i64::from(tokens.oov)),
            Self::Hash { .. } => Some(self.size() - 1),
            Self::Ids { .. } => None,
        }
    }

    pub(super) fn lookup(&self, token: &str) -> std::result::Result<i32, Refused> {
        match self {
            Self::Tokens(tokens) => Ok(*tokens.ids.get(token).unwrap_or(&tokens.oov) as i32),
            Self::Hash { buckets } if token.is_empty() => Ok((*buckets + 1) as i32),
            Self::Hash { buckets } => Ok((hash(token) % u64::from(*buckets)) as i32 + 1),
            Self::Ids { size } => {
                let id: i64 = token.trim().parse().map_err(|_| {
                    Refused(format!("expected an id, a whole number, got `{token}`"))
                })?;
                if id < 0 {
                    return Err(Refused(format!("the id {id} is negative; ids start at 0")));
                }
                if id >= *size {
                    return Err(Refused(format!(
                        "the id {id} is beyond the vocabulary, whose last is {}",
                        size - 1
                    )));
                }
                Ok(id as i32)
            }
        }
    }
}

/// FNV-1a, and the finish of Murmur3 so that the low bits depend on all letters. It must never change: saved models rest on it.
fn hash(token: &str) -> u64 {
    let mut h = token.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, byte| {
        (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

/// Occurrences of tokens in the training rows.
#[derive(Debug, Clone, Default)]
pub(super) struct Counter {
    /// Occurrences, and the token's place in the order of first appearance.
    counts: HashMap<Box<str>, (u64, u32)>,
}

impl Counter {
    pub(super) fn add(&mut self, token: &str) -> std::result::Result<(), Refused> {
        if let Some((count, _)) = self.counts.get_mut(token) {
            *count += 1;
            return Ok(());
        }
        let place = self.counts.len();
        if place >= MOST_TOKENS {
            return Err(Refused(format!(
                "has more than {MOST_TOKENS} distinct values; give it `hash_buckets`, such as 10000000"
            )));
        }
        self.counts.insert(token.into(), (1, place as u32));
        Ok(())
    }

    /// The frequent tokens in the order of the column.
    pub(super) fn finish(self, column: &Column) -> Tokens {
        let left_out = column.left_out();
        let mut tokens: Vec<(Box<str>, (u64, u32))> = self.counts.into_iter().collect();
        tokens.retain(|(token, (count, _))| {
            *count >= column.min_count && Some(&**token) != left_out.as_deref()
        });
        let number = |token: &str| token.parse::<f64>().unwrap_or(f64::NAN);
        match column.order {
            TokenOrder::FirstSeen => tokens
                .sort_unstable_by_key(|(_, (count, place))| (std::cmp::Reverse(*count), *place)),
            TokenOrder::Sorted if column.token_dtype() == Dtype::Str => {
                tokens.sort_unstable_by(|(a, (n, _)), (b, (m, _))| m.cmp(n).then_with(|| a.cmp(b)));
            }
            TokenOrder::Sorted => {
                tokens.sort_unstable_by(|(a, _), (b, _)| number(a).total_cmp(&number(b)));
            }
        }
        Tokens::in_order(tokens.into_iter().map(|(token, _)| token))
    }
}

impl Tokens {
    /// Ids from 1 on in this order.
    pub(super) fn in_order(tokens: impl Iterator<Item = Box<str>>) -> Self {
        let ids: HashMap<Box<str>, u32> = tokens.zip(1..).collect();
        let oov = ids.len() as u32 + 1;
        Self {
            ids,
            oov,
            size: oov + 1,
        }
    }

    /// Adds what `other` knows and this does not, in the order of its ids; the id for unknown tokens moves to the end.
    pub(super) fn merge(&mut self, other: &Self) {
        let mut next = self.oov;
        for (token, _) in other.sorted() {
            if !self.ids.contains_key(token) {
                self.ids.insert(token.into(), next);
                next += 1;
            }
        }
        self.oov = next.max(self.oov);
        self.size = self.size.max(self.oov + 1);
    }

    /// Number of known tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether no token is known.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Tokens by id.
    pub fn sorted(&self) -> Vec<(&str, u32)> {
        let mut tokens: Vec<(&str, u32)> =
            self.ids.iter().map(|(token, id)| (&**token, *id)).collect();
        tokens.sort_unstable_by_key(|(_, id)| *id);
        tokens
    }

    /// From FuxiCTR's own file, where ids need not follow each other.
    pub(super) fn from_ids(ids: HashMap<Box<str>, u32>, oov: u32, size: u32) -> Result<Self> {
        let highest = ids.values().copied().max().unwrap_or(0).max(oov);
        if highest >= size {
            let reason = format!("the id {highest} is beyond `vocab_size`, {size}");
            return Err(Error::config("vocabulary", reason));
        }
        Ok(Self { ids, oov, size })
    }
}

/// A vocabulary as a file holds it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Saved {
    Tokens {
        /// In the order of their ids.
        tokens: Vec<String>,
        /// Their ids, where they are not 1, 2, 3 and so on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ids: Option<Vec<u32>>,
        oov: u32,
        size: u32,
    },
    Hash {
        buckets: u32,
    },
    Ids {
        size: i64,
    },
}

impl From<&Vocabulary> for Saved {
    fn from(vocabulary: &Vocabulary) -> Self {
        match vocabulary {
            Vocabulary::Tokens(known) => {
                let sorted = known.sorted();
                let plain = sorted.iter().zip(1..).all(|((_, id), place)| *id == place);
                Self::Tokens {
                    ids: (!plain).then(|| sorted.iter().map(|(_, id)| *id).collect()),
                    tokens: sorted
                        .iter()
                        .map(|(token, _)| (*token).to_owned())
                        .collect(),
                    oov: known.oov,
                    size: known.size,
                }
            }
            Vocabulary::Hash { buckets } => Self::Hash { buckets: *buckets },
            Vocabulary::Ids { size } => Self::Ids { size: *size },
        }
    }
}

impl TryFrom<Saved> for Vocabulary {
    type Error = Error;

    fn try_from(saved: Saved) -> Result<Self> {
        let wrong = |reason: String| Err(Error::config("vocabulary", reason));
        Ok(match saved {
            Saved::Tokens {
                tokens,
                ids,
                oov,
                size,
            } => {
                let count = tokens.len();
                let ids = ids.unwrap_or_else(|| (1..=count as u32).collect());
                if ids.len() != count {
                    return wrong(format!("has {count} tokens and {} ids", ids.len()));
                }
                let ids: HashMap<Box<str>, u32> = tokens
                    .into_iter()
                    .map(String::into_boxed_str)
                    .zip(ids)
                    .collect();
                if ids.len() != count {
                    return wrong("a token stands twice".to_owned());
                }
                Self::Tokens(Tokens::from_ids(ids, oov, size)?)
            }
            Saved::Hash { buckets: 0 } => return wrong("has no buckets".to_owned()),
            Saved::Hash { buckets } => Self::Hash { buckets },
            Saved::Ids { size } if size < 1 => return wrong(format!("has size {size}")),
            Saved::Ids { size } => Self::Ids { size },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature_map::Kind;

    fn counted(tokens: &[&str], change: impl FnOnce(&mut Column)) -> Tokens {
        let mut column = Column::new("x", Kind::Categorical);
        change(&mut column);
        let mut counter = Counter::default();
        for token in tokens {
            counter.add(token).expect("few tokens");
        }
        counter.finish(&column)
    }

    #[test]
    fn ids_go_by_count_then_by_text_or_by_first_appearance() {
        let texts = ["d", "a", "c", "a", "", "", "", "c", "b"];
        let tokens = counted(&texts, |_| {});
        assert_eq!(tokens.sorted(), [("a", 1), ("c", 2), ("b", 3), ("d", 4)]);
        assert_eq!((tokens.oov, tokens.size), (5, 6));
        let tokens = counted(&texts, |column| column.order = TokenOrder::FirstSeen);
        assert_eq!(tokens.sorted(), [("a", 1), ("c", 2), ("d", 3), ("b", 4)]);
        let frequent = counted(&texts, |column| column.min_count = 2);
        assert_eq!(frequent.sorted(), [("a", 1), ("c", 2)]);
        let numbers = counted(&["10", "9", "10", "0"], |column| {
            column.dtype = Dtype::Int;
            column.fill_na = Some("0".to_owned());
        });
        assert_eq!(numbers.sorted(), [("9", 1), ("10", 2)]);
    }

    #[test]
    fn a_union_appends_and_moves_the_unknown_to_the_end() {
        let mut tokens = counted(&["a", "a", "b"], |_| {});
        tokens.merge(&counted(&["b", "c", "d", "d"], |_| {}));
        assert_eq!(tokens.sorted(), [("a", 1), ("b", 2), ("d", 3), ("c", 4)]);
        assert_eq!((tokens.oov, tokens.size), (5, 6));
        let before = tokens.clone();
        tokens.merge(&counted(&["a"], |_| {}));
        assert_eq!(tokens, before);
    }

    #[test]
    fn hashes_stay_in_range_and_never_change() {
        let hashed = Vocabulary::Hash { buckets: 1000 };
        assert_eq!(hashed.size(), 1002);
        assert_eq!(hashed.id("").expect("missing"), 1001);
        let ids: Vec<i64> = (0..5000)
            .map(|i| hashed.id(&format!("user {i}")).expect("an id"))
            .collect();
        assert!(ids.iter().all(|id| (1..=1000).contains(id)));
        let distinct: std::collections::HashSet<_> = ids.iter().collect();
        // 1000·(1 - e⁻⁵) buckets are met by 5000 draws.
        assert!(distinct.len() > 980, "{}", distinct.len());
        assert_eq!(hash("user 17"), hash("user 17"));
        assert_eq!(hash(""), 0xefd0_1f60_ba99_2926);
    }

    #[test]
    fn ids_out_of_range_have_their_sentences() {
        let ids = Vocabulary::Ids { size: 10 };
        assert_eq!(ids.id("9").expect("the last"), 9);
        for (token, words) in [
            ("-3", "the id -3 is negative"),
            ("10", "the id 10 is beyond the vocabulary, whose last is 9"),
            ("x", "expected an id, a whole number, got `x`"),
        ] {
            let error = ids.id(token).expect_err(token).to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
