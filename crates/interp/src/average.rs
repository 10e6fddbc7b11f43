//! Averages of traces over facts: where, by the place of a token and by layer, restoring has an effect.
//!
//! As in kmeng01/rome `notebooks/average_causal_effects.ipynb`: the tokens of a prompt fall into six groups, and of each group
//! and layer the mean indirect effect is taken, every token counting once. What differs: the groups that a prompt does not have are
//! left out of it, where the reference stops when a prompt ends with its subject; effects below zero are kept, where its
//! pictures cut them off; and the interval counts facts, not tokens.
//!
//! Intervals: tokens of one fact are not independent, so that the mean, a ratio of sums over facts, gets the ratio
//! estimator's standard error over N facts, `√(N/(N-1) · Σ (S_i - mean·n_i)²) / Σ n_i` with the sum `S_i` and number `n_i` of a
//! fact's tokens; where each fact has one token that is the usual standard error. 95 % lie within 1.96 of them if N is large. A bootstrap
//! over facts can be had in their place.

use std::collections::BTreeMap;
use std::fmt::Write;

use densely_core::{Error, Result};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::trace::{Restore, Trace};

/// Groups of tokens by their place in the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// The subject's first token; of a subject of one token it is the last one too.
    SubjectFirst,
    /// The subject's tokens between its first and its last.
    SubjectMiddle,
    /// The subject's last token.
    SubjectLast,
    /// The first token behind the subject.
    FurtherFirst,
    /// Tokens between that and the prompt's last.
    FurtherMiddle,
    /// The prompt's last token.
    Last,
}

impl Place {
    /// All of them, in the order of a prompt.
    pub const ALL: [Self; 6] = [
        Self::SubjectFirst,
        Self::SubjectMiddle,
        Self::SubjectLast,
        Self::FurtherFirst,
        Self::FurtherMiddle,
        Self::Last,
    ];

    /// Its name in figures.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SubjectFirst => "first subject token",
            Self::SubjectMiddle => "middle subject tokens",
            Self::SubjectLast => "last subject token",
            Self::FurtherFirst => "first subsequent token",
            Self::FurtherMiddle => "further tokens",
            Self::Last => "last token",
        }
    }

    /// The tokens of a trace that are in this group.
    fn tokens(self, trace: &Trace) -> std::ops::Range<usize> {
        let (start, end) = (trace.subject.start, trace.subject.end);
        let count = trace.tokens.len();
        match self {
            Self::SubjectFirst => start..start + 1,
            Self::SubjectMiddle => start + 1..end.saturating_sub(1).max(start + 1),
            Self::SubjectLast => end.saturating_sub(1)..end,
            Self::FurtherFirst => end..(end + 1).min(count),
            Self::FurtherMiddle => end + 1..count.saturating_sub(1).max(end + 1),
            Self::Last => count.saturating_sub(1)..count,
        }
    }
}

/// A mean with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

/// One group of tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Which one.
    pub place: Place,
    /// Facts that have such tokens.
    pub facts: usize,
    /// Such tokens of all facts.
    pub tokens: usize,
    /// Mean indirect effect by layer.
    pub effects: Vec<Estimate>,
}

impl Group {
    /// The layer with the largest effect.
    pub fn best(&self) -> Option<(usize, Estimate)> {
        let layers = self.effects.iter().copied().enumerate();
        layers.max_by(|a, b| a.1.mean.total_cmp(&b.1.mean))
    }
}

/// Averages over facts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Averages {
    /// Facts that were averaged.
    pub facts: usize,
    /// Probability of the answer in the clean run.
    pub high: Estimate,
    /// Probability of the answer in the corrupted runs.
    pub low: Estimate,
    /// Their difference: what corruption takes.
    pub total_effect: Estimate,
    /// Groups by what was restored; those that no fact has are absent.
    pub kinds: BTreeMap<Restore, Vec<Group>>,
}

/// How intervals are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interval {
    /// By the standard error.
    #[default]
    Normal,
    /// The middle 95 % of means over facts drawn with replacement.
    Bootstrap {
        /// Number of draws.
        draws: usize,
        /// Their seed.
        seed: u64,
    },
}

impl Averages {
    /// Averages traces of one model under one setting.
    ///
    /// # Errors
    /// [`Error::Config`] when there is no trace, they differ in layers or kinds, or there are too few or too many draws.
    pub fn new(traces: &[&Trace], interval: Interval) -> Result<Self> {
        let Some(first) = traces.first() else {
            return Err(Error::config(
                "facts",
                "none was traced, so that there is no average",
            ));
        };
        if let Interval::Bootstrap { draws, .. } = interval
            && !(40..=1_000_000).contains(&draws)
        {
            let reason = format!("must be 40 to 1000000 for the ends of 95 %, got {draws}");
            return Err(Error::config("bootstrap", reason));
        }
        let layers = |trace: &Trace| {
            let grid = trace.scores.values().next();
            grid.and_then(|grid| grid.first()).map_or(0, Vec::len)
        };
        let count = layers(first);
        for trace in traces {
            check(trace, first, count)?;
        }
        let of = |value: fn(&Trace) -> f64| {
            let values: Vec<(f64, f64)> = traces.iter().map(|trace| (value(trace), 1.0)).collect();
            estimate(&values, interval)
        };
        let mut kinds = BTreeMap::new();
        for kind in first.scores.keys() {
            let mut groups = Vec::new();
            for place in Place::ALL {
                if let Some(group) = group(traces, *kind, place, count, interval) {
                    groups.push(group);
                }
            }
            kinds.insert(*kind, groups);
        }
        Ok(Self {
            facts: traces.len(),
            high: of(|trace| trace.high),
            low: of(|trace| trace.low),
            total_effect: of(|trace| trace.high - trace.low),
            kinds,
        })
    }

    /// Markdown tables: totals, and of each kind the largest effect of each group of tokens.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        let percent = |e: &Estimate| {
            format!(
                "{:.2} % ({:.2} to {:.2})",
                100.0 * e.mean,
                100.0 * e.low,
                100.0 * e.high
            )
        };
        let _ = write!(
            out,
            "| over {} facts | mean (95 % interval) |\n| --- | --- |\n",
            self.facts
        );
        for (name, value) in [
            ("probability of the answer, clean", &self.high),
            ("probability of the answer, corrupted", &self.low),
            ("total effect", &self.total_effect),
        ] {
            let _ = writeln!(out, "| {name} | {} |", percent(value));
        }
        for (kind, groups) in &self.kinds {
            let _ = write!(
                out,
                "\n### {}\n\n| tokens | facts | largest average indirect effect (95 % interval) | layer |\n| --- | --- | --- | --- |\n",
                what(*kind)
            );
            for group in groups {
                if let Some((layer, effect)) = group.best() {
                    let _ = writeln!(
                        out,
                        "| {} | {} | {} | {layer} |",
                        group.place.name(),
                        group.facts,
                        percent(&effect)
                    );
                }
            }
        }
        out
    }
}

/// What a kind restores, in words.
pub const fn what(kind: Restore) -> &'static str {
    match kind {
        Restore::Block => "a single hidden state",
        Restore::Mlp => "a window of MLP outputs",
        Restore::Attention => "a window of attention outputs",
        Restore::SeveredMlp => "a single hidden state, MLPs severed",
        Restore::SeveredAttention => "a single hidden state, attentions severed",
    }
}

/// Fails unless a trace has the kinds and layers of the first, a row for each token, and its subject within them.
fn check(trace: &Trace, first: &Trace, layers: usize) -> Result<()> {
    let kinds = trace.scores.keys().eq(first.scores.keys());
    let rows = trace
        .scores
        .values()
        .all(|grid| grid.len() == trace.tokens.len() && grid.iter().all(|row| row.len() == layers));
    let subject =
        trace.subject.start < trace.subject.end && trace.subject.end <= trace.tokens.len();
    if kinds && rows && subject {
        return Ok(());
    }
    Err(Error::config(
        "traces",
        "must be of one model and one setting, each with a row per token",
    ))
}

fn group(
    traces: &[&Trace],
    kind: Restore,
    place: Place,
    layers: usize,
    interval: Interval,
) -> Option<Group> {
    // Of each fact with such tokens: their rows and what corruption leaves.
    let rows: Vec<(&[Vec<f64>], f64)> = traces
        .iter()
        .filter_map(|trace| {
            let rows = trace.scores.get(&kind)?.get(place.tokens(trace))?;
            (!rows.is_empty()).then_some((rows, trace.low))
        })
        .collect();
    if rows.is_empty() {
        return None;
    }
    let effects = (0..layers)
        .map(|layer| {
            let sums: Vec<(f64, f64)> = rows
                .iter()
                .map(|(rows, low)| {
                    let effects = rows
                        .iter()
                        .filter_map(|row| row.get(layer))
                        .map(|score| score - low);
                    (effects.sum(), rows.len() as f64)
                })
                .collect();
            estimate(&sums, interval)
        })
        .collect();
    Some(Group {
        place,
        facts: rows.len(),
        tokens: rows.iter().map(|(rows, _)| rows.len()).sum(),
        effects,
    })
}

/// Sums over numbers, and the numbers' own sum.
fn ratio<'a>(values: impl Iterator<Item = &'a (f64, f64)>) -> (f64, f64) {
    let (sum, count) = values.fold((0.0, 0.0), |(a, b), (c, d)| (a + c, b + d));
    (sum / count, count)
}

/// The mean of sums over numbers of tokens, one of each fact, with its interval.
fn estimate(values: &[(f64, f64)], interval: Interval) -> Estimate {
    let (mean, count) = ratio(values.iter());
    let n = values.len() as f64;
    match interval {
        // One fact tells nothing of their spread: the ends are the mean.
        _ if values.len() < 2 => Estimate {
            mean,
            low: mean,
            high: mean,
        },
        Interval::Normal => {
            let squares: f64 = values.iter().map(|(s, n)| (s - mean * n).powi(2)).sum();
            let error = (squares * n / (n - 1.0)).sqrt() / count;
            Estimate {
                mean,
                low: mean - 1.96 * error,
                high: mean + 1.96 * error,
            }
        }
        Interval::Bootstrap { draws, seed } => {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut means: Vec<f64> = (0..draws)
                .map(|_| {
                    let drawn: Vec<&(f64, f64)> = (0..values.len())
                        .filter_map(|_| values.get(rng.random_range(0..values.len())))
                        .collect();
                    ratio(drawn.into_iter()).0
                })
                .collect();
            means.sort_by(f64::total_cmp);
            let at = |share: f64| {
                let place = (share * (means.len() - 1) as f64).round() as usize;
                means.get(place).copied().unwrap_or(mean)
            };
            Estimate {
                mean,
                low: at(0.025),
                high: at(0.975),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(subject: std::ops::Range<usize>, low: f64, rows: &[f64]) -> Trace {
        Trace {
            tokens: rows.iter().map(f64::to_string).collect(),
            subject,
            answer: "x".to_owned(),
            answer_ids: vec![1],
            high: 0.9,
            low,
            low_of_draws: vec![low],
            window: 10,
            scores: BTreeMap::from([(
                Restore::Block,
                rows.iter().map(|score| vec![*score, 2.0 * score]).collect(),
            )]),
        }
    }

    #[test]
    fn tokens_fall_into_the_groups_of_their_place() -> Result<()> {
        // Four subject tokens, then three more.
        let long = trace(1..5, 0.0, &[0.0, 0.1, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8]);
        // One subject token at the end: nothing follows.
        let short = trace(1..2, 0.1, &[0.0, 0.3]);
        let averages = Averages::new(&[&long, &short], Interval::Normal)?;
        let groups = &averages.kinds[&Restore::Block];
        let found: Vec<(Place, usize, usize, f64)> = groups
            .iter()
            .map(|g| (g.place, g.facts, g.tokens, g.effects[0].mean))
            .collect();
        let expected = [
            (Place::SubjectFirst, 2, 2, 0.1f64.midpoint(0.2)),
            (Place::SubjectMiddle, 1, 2, 0.3),
            (Place::SubjectLast, 2, 2, 0.5f64.midpoint(0.2)),
            (Place::FurtherFirst, 1, 1, 0.6),
            (Place::FurtherMiddle, 1, 1, 0.7),
            (Place::Last, 2, 2, 0.8f64.midpoint(0.2)),
        ];
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(
                (found.0, found.1, found.2),
                (expected.0, expected.1, expected.2)
            );
            assert!((found.3 - expected.3).abs() < 1e-12, "{found:?}");
        }
        assert!(averages.markdown().contains("last subject token | 2"));
        Ok(())
    }

    #[test]
    fn with_a_token_each_the_interval_is_the_usual_one() {
        let values = [(1.0, 1.0), (2.0, 1.0), (4.0, 1.0), (9.0, 1.0)];
        let found = estimate(&values, Interval::Normal);
        // Standard deviation of 1, 2, 4, 9 with n - 1 is √(38 / 3).
        let error = (38.0f64 / 3.0).sqrt() / 2.0;
        assert!((found.mean - 4.0).abs() < 1e-12);
        assert!((found.high - found.mean - 1.96 * error).abs() < 1e-12);
        let drawn = estimate(
            &values,
            Interval::Bootstrap {
                draws: 4000,
                seed: 1,
            },
        );
        assert!(drawn.low >= 1.0 && drawn.high <= 9.0 && drawn.low < 4.0 && drawn.high > 4.0);
        let few = Interval::Bootstrap { draws: 3, seed: 1 };
        assert!(Averages::new(&[&trace(0..1, 0.0, &[0.1])], few).is_err());
        assert!(Averages::new(&[], Interval::Normal).is_err());
    }
}
