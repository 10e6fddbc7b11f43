//! What is known of the eight data sets: sizes, splits, licences.
//!
//! Sizes of the binary sets' splits are those of the published run reports; of the regression sets the training part is
//! known to a batch only from there, and validation and test come from the paper. A folder that differs gives a warning.

use densely_data::schema::Task;
use densely_train::metrics::Metric;

/// One of the eight data sets, in the default split.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SetFacts {
    /// Name in `info.json`, and of the folder.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// What is predicted, in words.
    pub target: &'static str,
    /// Kind of target.
    pub task: Task,
    /// The benchmark's score.
    pub score: Metric,
    /// Rows in the arrays.
    pub rows: usize,
    /// Numerical, binary and categorical features.
    pub features: [usize; 3],
    /// Rows that train, validate and test by default; later rows may be unused.
    pub split: [usize; 3],
    /// First day of validation and of testing, and, where later rows are unused, the first day of those.
    pub boundaries: (&'static str, &'static str, Option<&'static str>),
    /// Rows of validation and of testing in the random and sliding-window splits.
    pub window: usize,
    /// Of the archive `preprocessed/<name>.tabred`.
    pub sha256: &'static str,
    /// Under which terms.
    pub licence: &'static str,
    /// Kaggle competition whose rules must be accepted, where there is one.
    pub competition: Option<&'static str>,
}

const YANDEX: &str = "CC BY-NC-SA 4.0";
const RULES: &str = "the rules of its Kaggle competition";

/// The data sets in the benchmark's order.
pub static SETS: [SetFacts; 8] = [
    SetFacts {
        name: "homesite-insurance",
        title: "Homesite Insurance",
        target: "whether a customer buys the quoted insurance",
        task: Task::Binary,
        score: Metric::RocAuc,
        rows: 260_753,
        features: [253, 23, 23],
        split: [224_320, 20_138, 16_295],
        boundaries: ("2015-02-01", "2015-04-01", None),
        window: 20_000,
        sha256: "9c94a9ba8a2dc68221c97d45273076714ad308b5e556ac59fd52117e1ea17d75",
        licence: RULES,
        competition: Some("homesite-quote-conversion"),
    },
    SetFacts {
        name: "ecom-offers",
        title: "Ecom Offers",
        target: "whether a customer returns after a discount",
        task: Task::Binary,
        score: Metric::RocAuc,
        rows: 160_057,
        features: [113, 6, 0],
        split: [109_341, 24_261, 26_455],
        boundaries: ("2013-04-20", "2013-04-25", None),
        window: 20_000,
        sha256: "de7f96400b9006eab4bfa4318993506aa667c0508da32a5e00b912b2bc702bc9",
        licence: RULES,
        competition: Some("acquire-valued-shoppers-challenge"),
    },
    SetFacts {
        name: "homecredit-default",
        title: "Homecredit Default",
        target: "whether a loan is not paid back",
        task: Task::Binary,
        score: Metric::RocAuc,
        rows: 381_664,
        features: [612, 2, 82],
        split: [267_645, 58_018, 56_001],
        boundaries: ("2020-01-01", "2020-05-01", None),
        window: 50_000,
        sha256: "fdcdcfe9b67e9ac8fae0291ee0aa8b492e41c123f99c9d3cecae2b78602c7f30",
        licence: RULES,
        competition: Some("home-credit-credit-risk-model-stability"),
    },
    SetFacts {
        name: "sberbank-housing",
        title: "Sberbank Housing",
        target: "natural logarithm of a flat's price per square metre",
        task: Task::Regression,
        score: Metric::Rmse,
        rows: 28_321,
        features: [365, 17, 10],
        split: [18_847, 4_827, 4_647],
        boundaries: ("2014-06-30", "2014-12-01", None),
        window: 4_500,
        sha256: "a6a11bc09204a5d6d0015dfae504cd630186c813a87e384eaf8caf5b960eb334",
        licence: RULES,
        competition: Some("sberbank-russian-housing-market"),
    },
    SetFacts {
        name: "cooking-time",
        title: "Cooking Time",
        target: "natural logarithm of the minutes that an order cooks",
        task: Task::Regression,
        score: Metric::Rmse,
        rows: 319_986,
        features: [186, 3, 3],
        split: [227_087, 51_251, 41_648],
        boundaries: ("2023-12-21", "2023-12-28", None),
        window: 40_000,
        sha256: "ff7fb7f5be7101019164ec190831766997c28b00aefb4b902050099948435d95",
        licence: YANDEX,
        competition: None,
    },
    SetFacts {
        name: "delivery-eta",
        title: "Delivery ETA",
        target: "natural logarithm of the minutes to a delivery",
        task: Task::Regression,
        score: Metric::Rmse,
        rows: 416_451,
        features: [221, 1, 1],
        split: [279_415, 34_174, 36_927],
        boundaries: ("2023-12-11", "2023-12-18", Some("2023-12-25")),
        window: 40_000,
        sha256: "097b1272e45de3a723f66d7b0d5c0a397b53a773cd5a781b8f094bfb753d5362",
        licence: YANDEX,
        competition: None,
    },
    SetFacts {
        name: "maps-routing",
        title: "Maps Routing",
        target: "natural logarithm of the seconds per kilometre of a route",
        task: Task::Regression,
        score: Metric::Rmse,
        rows: 340_981,
        features: [984, 0, 2],
        split: [160_019, 59_975, 59_951],
        boundaries: ("2023-11-20", "2023-11-27", Some("2023-12-04")),
        window: 60_000,
        sha256: "bdf503d49f10af2594594feb8c2ad8f4d90725bf21f1fe3de238acf0cb9f2abf",
        licence: YANDEX,
        competition: None,
    },
    SetFacts {
        name: "weather",
        title: "Weather",
        target: "temperature, degrees Celsius",
        task: Task::Regression,
        score: Metric::Rmse,
        rows: 423_795,
        features: [100, 3, 0],
        split: [340_596, 42_359, 40_840],
        boundaries: ("2023-06-01", "2023-07-01", None),
        window: 40_000,
        sha256: "b5dfc96c4e33d3567b748f0cc2b12baa5ea28fac400147953a3cd1cb735697e5",
        licence: YANDEX,
        competition: None,
    },
];

/// The data set of this name.
pub fn find(name: &str) -> Option<&'static SetFacts> {
    SETS.iter().find(|set| set.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_facts_agree_with_each_other() {
        // Features as the benchmark's own page sums them up.
        let totals = [299, 119, 696, 392, 192, 223, 986, 103];
        for (set, total) in SETS.iter().zip(totals) {
            assert_eq!(set.features.iter().sum::<usize>(), total, "{}", set.name);
            let split: usize = set.split.iter().sum();
            let unused = set.boundaries.2.is_some();
            assert_eq!(split < set.rows, unused, "{}", set.name);
            assert!(set.rows > 4 * set.window, "{}", set.name);
            assert_eq!(set.sha256.len(), 64);
            assert_eq!(set.task == Task::Binary, set.score == Metric::RocAuc);
        }
    }
}
