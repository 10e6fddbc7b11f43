//! How the benchmark compares models: ranks that count a difference only beyond the spread of the better model's runs, and
//! a score against the tuned MLP. Follows `paper/tool/tables-gen.py` of yandex-research/tabred.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use densely_core::{Error, Result};
use densely_train::metrics::Direction;

use super::sets::SETS;

/// The published runs; the file's head says where they are from.
const PUBLISHED: &str = include_str!("results.csv");

/// The model that scores are relative to.
pub const BASELINE: &str = "MLP";

/// First line of a file of results.
const COLUMNS: &str = "model,dataset,mean,sd,runs";

/// A model's test scores on one data set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Mean over the runs, in the units of the score.
    pub mean: f64,
    /// Sample standard deviation; none for a single run.
    pub sd: Option<f64>,
}

/// A model and its test scores, in the order of [`SETS`].
#[derive(Debug, Clone, PartialEq)]
pub struct ModelResults {
    /// Its name.
    pub model: String,
    /// Its scores, where it was run.
    pub measured: [Option<Measured>; SETS.len()],
}

/// Where a model stands among others.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// The model.
    pub model: String,
    /// Mean scores in the order of [`SETS`].
    pub means: [Option<f64>; SETS.len()],
    /// Ranks in the order of [`SETS`], from 1.
    pub ranks: [Option<u32>; SETS.len()],
    /// Mean of the ranks.
    pub rank: f64,
    /// Mean gain over [`BASELINE`], percent; less error is a gain too. None without a baseline.
    pub score: Option<f64>,
}

/// The 16 models of the benchmark's published runs.
///
/// # Errors
/// None in practice: the file is part of the crate and is tested.
pub fn published() -> Result<Vec<ModelResults>> {
    parse(Path::new("results.csv"), PUBLISHED)
}

/// Reads results from a file of the columns `model,dataset,mean,sd,runs`, where `sd` and `runs` may be empty and lines
/// that begin with `#` are remarks.
///
/// # Errors
/// [`Error::Io`]; those of [`parse`].
pub fn read(path: &Path) -> Result<Vec<ModelResults>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    parse(path, &text)
}

/// As [`read`], from a text; `path` is what errors name.
///
/// # Errors
/// [`Error::Data`] with the line: another number of columns, an unknown data set, a number that is none, a second
/// row of one model and data set.
pub fn parse(path: &Path, text: &str) -> Result<Vec<ModelResults>> {
    let mut models: Vec<ModelResults> = Vec::new();
    let mut lines = (1u64..)
        .zip(text.lines())
        .filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    let wrong = |line: u64, reason: String| Error::Data {
        path: path.to_owned(),
        row: Some(line),
        column: None,
        reason,
    };
    match lines.next() {
        Some((_, line)) if line.trim() == COLUMNS => {}
        Some((at, line)) => {
            let reason = format!("expected the header `{COLUMNS}`, got `{line}`");
            return Err(wrong(at, reason));
        }
        None => {
            let reason = format!("expected rows of `{COLUMNS}`, got none");
            return Err(Error::data(path, reason));
        }
    }
    for (at, line) in lines {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let [model, set, mean, sd, runs] = fields[..] else {
            let reason = format!("expected 5 values (`{COLUMNS}`), got {}", fields.len());
            return Err(wrong(at, reason));
        };
        let place = SETS.iter().position(|facts| facts.name == set);
        let place = place.ok_or_else(|| {
            let names: Vec<&str> = SETS.iter().map(|facts| facts.name).collect();
            let reason = format!(
                "there is no data set `{set}`; there are {}",
                names.join(", ")
            );
            wrong(at, reason)
        })?;
        let number = |name: &str, text: &str| {
            let value = text.parse::<f64>().ok();
            value
                .filter(|value| *value >= 0.0 && value.is_finite())
                .ok_or_else(|| {
                    let reason = format!("`{name}`: expected a number of at least 0, got `{text}`");
                    wrong(at, reason)
                })
        };
        let mean = number("mean", mean)?;
        let optional =
            |name: &str, text: &str| (!text.is_empty()).then(|| number(name, text)).transpose();
        let sd = optional("sd", sd)?;
        optional("runs", runs)?;
        if model.is_empty() {
            return Err(wrong(
                at,
                "`model`: expected a name, got nothing".to_owned(),
            ));
        }
        let known = models.iter().position(|known| known.model == model);
        let known = known.unwrap_or_else(|| {
            models.push(ModelResults {
                model: model.to_owned(),
                measured: [None; SETS.len()],
            });
            models.len() - 1
        });
        if models[known].measured[place]
            .replace(Measured { mean, sd })
            .is_some()
        {
            return Err(wrong(at, format!("`{model}` on `{set}` stands here again")));
        }
    }
    Ok(models)
}

/// Ranks of models on one data set, from 1, in the order of `measured`.
///
/// From the best mean to the worst, a model keeps the rank while it is within one standard deviation of the rank's first
/// model; else it takes the next rank and is the one that others are compared with. The deviation of a single run is
/// not known and counts as infinite.
pub fn rank(measured: &[Measured], direction: Direction) -> Vec<u32> {
    let gain = |i: usize| match direction {
        Direction::Higher => measured[i].mean,
        Direction::Lower => -measured[i].mean,
    };
    let mut order: Vec<usize> = (0..measured.len()).collect();
    order.sort_by(|a, b| gain(*b).total_cmp(&gain(*a)));
    let mut ranks = vec![1; measured.len()];
    let (mut current, mut first) = (1, order.first().copied().unwrap_or(0));
    for i in order {
        if gain(first) - gain(i) > measured[first].sd.unwrap_or(f64::INFINITY) {
            current += 1;
            first = i;
        }
        ranks[i] = current;
    }
    ranks
}

/// Ranks and scores of all models among each other, the best mean rank first; equal ones in the given order.
///
/// # Errors
/// [`Error::Data`] when two models share a name or one has no result.
pub fn standings(models: &[ModelResults]) -> Result<Vec<Standing>> {
    let mut names = BTreeSet::new();
    for ModelResults { model, measured } in models {
        if !names.insert(model) {
            let reason = format!("two models are called `{model}`; rename one");
            return Err(Error::data("", reason));
        }
        if measured.iter().all(Option::is_none) {
            return Err(Error::data("", format!("`{model}` has no result")));
        }
    }
    let mut ranks = vec![[None; SETS.len()]; models.len()];
    for (set, facts) in SETS.iter().enumerate() {
        let (present, measured): (Vec<usize>, Vec<Measured>) = models
            .iter()
            .enumerate()
            .filter_map(|(i, model)| Some((i, model.measured[set]?)))
            .unzip();
        for (i, rank) in present.iter().zip(rank(&measured, facts.score.direction())) {
            ranks[*i][set] = Some(rank);
        }
    }
    let baseline = models.iter().find(|model| model.model == BASELINE);
    let mut standings: Vec<Standing> = models
        .iter()
        .zip(ranks)
        .map(|(model, ranks)| Standing {
            model: model.model.clone(),
            means: model.measured.map(|measured| Some(measured?.mean)),
            ranks,
            rank: mean(ranks.iter().flatten().map(|rank| f64::from(*rank))).unwrap_or(f64::NAN),
            score: baseline.and_then(|baseline| score(model, baseline)),
        })
        .collect();
    standings.sort_by(|a, b| a.rank.total_cmp(&b.rank));
    Ok(standings)
}

/// Mean gain of `model` over `baseline`, percent, over the data sets that both have.
fn score(model: &ModelResults, baseline: &ModelResults) -> Option<f64> {
    let gains = SETS.iter().enumerate().filter_map(|(set, facts)| {
        let (ours, theirs) = (model.measured[set]?.mean, baseline.measured[set]?.mean);
        let gain = (ours - theirs) / theirs * 100.0;
        Some(match facts.score.direction() {
            Direction::Higher => gain,
            Direction::Lower => -gain,
        })
    });
    mean(gains)
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

/// The standings as a Markdown table.
pub fn table(standings: &[Standing]) -> String {
    let width = standings.iter().map(|s| s.model.chars().count()).max();
    let width = width.unwrap_or(0).max("model".len());
    let mut text = format!("| {:<width$} |", "model");
    let mut line = format!("| {} |", "-".repeat(width));
    for facts in &SETS {
        let _ = write!(text, " {} |", facts.title); // writing to a String cannot fail
        let _ = write!(line, " {}: |", "-".repeat(facts.title.len() - 1));
    }
    let _ = write!(text, " rank | score % |\n{line} ---: | ------: |\n");
    for standing in standings {
        let _ = write!(text, "| {:<width$} |", standing.model);
        for (facts, mean) in SETS.iter().zip(standing.means) {
            let mean = mean.map_or_else(|| "–".to_owned(), |mean| format!("{mean:.4}"));
            let _ = write!(text, " {mean:>width$} |", width = facts.title.len());
        }
        // Halves away from zero, as the published table has them.
        let rank = (standing.rank * 10.0).round() / 10.0;
        let score = standing
            .score
            .map_or_else(|| "–".to_owned(), |score| format!("{score:+.2}"));
        let _ = writeln!(text, " {rank:>4.1} | {score:>7} |");
    }
    text
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_published_ranks_and_scores_come_out_of_the_published_runs() {
        let standings = standings(&published().unwrap()).unwrap();
        assert_eq!(standings.len(), 16);
        let table = table(&standings);
        // Rank and score as published.
        let expected = [
            ("XGBoost", "2.0", "+1.00"),
            ("LightGBM", "2.3", "+0.75"),
            ("CatBoost", "2.5", "+0.24"),
            ("MLP-PLR", "2.5", "+0.67"),
            ("MLP", "3.3", "+0.00"),
            ("FT-Transformer", "3.4", "+0.23"),
            ("ResNet", "3.8", "-1.05"),
            ("TabR", "3.8", "-1.31"),
            ("Trompt", "4.1", "-0.40"),
            ("SNN", "4.3", "-2.29"),
            ("DCNv2", "4.8", "-2.45"),
            ("RandomForest", "5.4", "-3.23"),
            ("Linear", "5.4", "-4.35"),
        ];
        let row = |model: &str| -> Vec<String> {
            let cells = |line: &str| -> Vec<String> {
                line.split('|').map(|cell| cell.trim().to_owned()).collect()
            };
            table
                .lines()
                .map(cells)
                .find(|cells| cells[1] == model)
                .unwrap()
        };
        for (model, rank, score) in expected {
            let row = row(model);
            assert_eq!(
                (row[10].as_str(), row[11].as_str()),
                (rank, score),
                "{model}"
            );
        }
        assert_eq!(
            row("XGBoost")[2..10],
            [
                "0.9601", "0.5763", "0.8670", "0.2419", "0.4823", "0.5468", "0.1616", "1.4671"
            ]
        );
        assert_eq!(
            row("Linear")[2..10],
            [
                "0.9290", "0.5665", "0.8168", "0.2509", "0.4882", "0.5579", "0.1709", "1.7679"
            ]
        );
        // The order of the published table, with the three further models in between.
        let order: Vec<&str> = standings
            .iter()
            .map(|standing| standing.model.as_str())
            .filter(|model| expected.iter().any(|(name, ..)| name == model))
            .collect();
        assert_eq!(order, expected.map(|(model, ..)| model));
    }

    #[test]
    fn a_rank_lasts_for_one_deviation_of_its_first_model() {
        let at = |mean: f64, sd: f64| Measured { mean, sd: Some(sd) };
        // 0.90 leads; 0.85 is within 0.1 of it. 0.79 is not: it leads the next rank and, with no spread, alone.
        let close = [at(0.78, 0.0), at(0.90, 0.1), at(0.85, 9.0), at(0.79, 0.0)];
        assert_eq!(rank(&close, Direction::Higher), [3, 1, 1, 2]);
        // From below: 0.79 is beyond a spread of nothing, 0.85 too, and its own spread takes 0.90 in.
        assert_eq!(rank(&close, Direction::Lower), [1, 3, 3, 2]);
        let single = [
            Measured {
                mean: 1.0,
                sd: None,
            },
            at(9.0, 0.0),
            at(0.5, 0.1),
        ];
        assert_eq!(rank(&single, Direction::Lower), [2, 2, 1]);
        assert_eq!(rank(&[], Direction::Higher), Vec::<u32>::new());
    }

    #[test]
    fn a_models_own_rows_find_their_place() {
        let mut models = published().unwrap();
        let text = "# mine\nmodel,dataset,mean,sd,runs\nMine, weather, 1.40, 0.001, 15\nMine,ecom-offers,0.59,,1\n";
        models.extend(parse(Path::new("mine.csv"), text).unwrap());
        let standings = standings(&models).unwrap();
        let mine = standings.iter().find(|s| s.model == "Mine").unwrap();
        assert_eq!(mine.ranks[7], Some(1));
        assert_eq!(mine.ranks.iter().flatten().count(), 2);
        let gain = (1.546_970_039_988 - 1.40) / 1.546_970_039_988 * 50.0
            + (0.59 / 0.601_452_763_076 - 1.0) * 50.0;
        assert!((mine.score.unwrap() - gain).abs() < 1e-9);
        assert!(table(&standings).contains("–"));
    }

    #[test]
    fn wrong_files_of_results_are_named_by_line() {
        let head = "model,dataset,mean,sd,runs\n";
        for (text, expected) in [
            (String::new(), "x.csv: expected rows"),
            ("model,mean\n".to_owned(), "row 1: expected the header"),
            (format!("{head}A,weather,1.0\n"), "row 2: expected 5 values"),
            (
                format!("{head}A,wether,1.0,,\n"),
                "no data set `wether`; there are homesite-insurance,",
            ),
            (
                format!("{head}A,weather,-1.0,,\n"),
                "`mean`: expected a number of at least 0, got `-1.0`",
            ),
            (format!("{head}A,weather,nan,,\n"), "got `nan`"),
            (format!("{head}A,weather,1,x,\n"), "`sd`: expected"),
            (format!("{head},weather,1,,\n"), "`model`: expected a name"),
            (
                format!("{head}A,weather,1,,\n#\nA,weather,1,,\n"),
                "row 4: `A` on `weather`",
            ),
        ] {
            let error = parse(Path::new("x.csv"), &text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let mut twice = published().unwrap();
        twice.extend(published().unwrap());
        assert!(
            standings(&twice)
                .unwrap_err()
                .to_string()
                .contains("`XGBoost`")
        );
    }
}
