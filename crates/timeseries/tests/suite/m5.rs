//! The competition's error against a sum by hand and against pandas; its files, whole and spoilt.

use std::path::{Path, PathBuf};

use densely_core::Result;
use densely_timeseries::m5::{self, Keys, Units, Wrmsse};
use serde_json::Value;
use tch::{Kind, Tensor};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/m5")
}

fn keys(item: &str, store: &str) -> Keys {
    Keys {
        item: item.to_owned(),
        dept: format!("{item}_1"),
        cat: format!("{item} things"),
        store: store.to_owned(),
        state: store.chars().take(2).collect(),
    }
}

fn close(actual: f64, expected: f64) {
    assert!(
        (actual - expected).abs() <= 1e-12 * expected.abs().max(1.0),
        "{actual} is not {expected}"
    );
}

#[test]
fn the_error_of_a_toy_hierarchy_equals_a_sum_by_hand() -> Result<()> {
    // Two items in a shop in California and one in Texas: so states are stores, and categories, departments and items are one.
    let keys = [
        keys("A", "CA_1"),
        keys("A", "TX_1"),
        keys("B", "CA_1"),
        keys("B", "TX_1"),
    ];
    let sold = [
        [0., 0., 2., 4., 3.], // A in CA: leading zeros; from the first sale on differences 2, −1
        [1., 3., 1., 3., 1.], // A in TX: 2, −2, 2, −2
        [0., 0., 0., 0., 0.], // B in CA: never sold, so no weight and no scale
        [0., 1., 0., 0., 2.], // B in TX: −1, 0, 2
    ];
    let units = Units::new(sold.concat(), 5)?;
    let error = Wrmsse::new(&keys, &units, 5, &[30.0, 20.0, 0.0, 50.0])?;
    let errors = Tensor::from_slice2(&[[1.0, -1.0], [2.0, 0.0], [1.0, 1.0], [0.0, 1.0]]);
    let actual = Tensor::from_slice2(&[[4.0, 1.0], [3.0, 2.0], [0.0, 0.0], [5.0, 6.0]]);
    let score = error.score(&(&actual + errors), &actual)?;

    let root = f64::sqrt;
    // Mean squared error over scale: A in CA 1 / (5/2), A in TX 2 / (16/4), B in TX ½ / (5/3).
    let bottom = 0.3 * root(1.0 / 2.5) + 0.2 * root(2.0 / 4.0) + 0.5 * root(0.5 / (5.0 / 3.0));
    // CA sells 0 0 2 4 3 with errors 2 0, where B's count too; TX sells 1 4 1 3 3 with errors 2 1.
    let stores = 0.3 * root(2.0 / 2.5) + 0.7 * root(2.5 / (22.0 / 4.0));
    // A sells 1 3 3 7 4 with errors 3 −1; B sells 0 1 0 0 2 with errors 1 2.
    let items = 0.5 * root(5.0 / (29.0 / 4.0)) + 0.5 * root(2.5 / (5.0 / 3.0));
    // All sell 1 4 3 7 6 with errors 4 1.
    let total = root(8.5 / (27.0 / 4.0));
    let expected = [
        total, stores, stores, items, items, bottom, bottom, bottom, bottom, items, bottom, bottom,
    ];
    for ((name, actual), expected) in score.levels.iter().zip(expected) {
        assert!(
            (actual - expected).abs() < 1e-12,
            "{name}: {actual}, {expected}"
        );
    }
    close(
        score.wrmsse,
        (total + 2.0 * stores + 3.0 * items + 6.0 * bottom) / 12.0,
    );
    assert_eq!(error.weights(2), [0.3, 0.7]);
    Ok(())
}

#[test]
fn the_full_hierarchy_has_42_840_series() -> Result<()> {
    let departments = [
        ("FOODS_1", 216),
        ("FOODS_2", 398),
        ("FOODS_3", 823),
        ("HOBBIES_1", 416),
        ("HOBBIES_2", 149),
        ("HOUSEHOLD_1", 532),
        ("HOUSEHOLD_2", 515),
    ];
    let stores = [
        "CA_1", "CA_2", "CA_3", "CA_4", "TX_1", "TX_2", "TX_3", "WI_1", "WI_2", "WI_3",
    ];
    let mut keys = Vec::new();
    for (dept, items) in departments {
        for item in 0..items {
            keys.extend(stores.map(|store| Keys {
                item: format!("{dept}_{item:03}"),
                dept: dept.to_owned(),
                cat: dept[..dept.len() - 2].to_owned(),
                store: store.to_owned(),
                state: store[..2].to_owned(),
            }));
        }
    }
    let levels = m5::hierarchy(&keys)?;
    let sizes: Vec<usize> = levels.iter().map(|level| level.names.len()).collect();
    assert_eq!(sizes, [1, 3, 10, 3, 7, 9, 21, 30, 70, 3049, 9147, 30490]);
    assert_eq!(sizes.iter().sum::<usize>(), 42_840);
    for level in levels {
        assert_eq!(level.members.iter().map(Vec::len).sum::<usize>(), 30_490);
    }
    Ok(())
}

#[test]
fn files_weights_and_error_equal_pandas() -> Result<()> {
    let text = std::fs::read_to_string(folder().join("m5.json")).expect("the golden");
    let golden: Value = serde_json::from_str(&text).expect("JSON");
    let numbers = |value: &Value| -> Vec<f64> {
        let list = value.as_array().expect("a list");
        list.iter().map(|x| x.as_f64().expect("a number")).collect()
    };
    let sales = m5::read(&folder())?;
    let train_days = golden["train_days"].as_u64().expect("a number") as usize;
    let dollars = sales.dollars(train_days)?;
    assert_eq!(dollars.unpriced, 0);
    for (ours, theirs) in dollars.of.iter().zip(numbers(&golden["dollars"])) {
        close(*ours, theirs);
    }
    assert!(dollars.of[7] == 0.0 && dollars.of[11] == 0.0 && dollars.of[0] > 0.0);

    let error = sales.wrmsse(train_days)?;
    for (at, level) in error.levels().iter().enumerate() {
        for (name, weight) in level.names.iter().zip(error.weights(at)) {
            close(
                weight,
                golden["weights"][at][name].as_f64().expect("the same name"),
            );
        }
    }
    let rows = golden["forecast"].as_array().expect("rows");
    let forecast: Vec<f64> = rows.iter().flat_map(numbers).collect();
    let forecast = Tensor::from_slice(&forecast).view([30, 28]);
    let score = error.score(&forecast, &sales.actual(train_days, 28)?)?;
    for ((_, ours), theirs) in score.levels.iter().zip(numbers(&golden["levels"])) {
        close(*ours, theirs);
    }
    close(score.wrmsse, golden["wrmsse"].as_f64().expect("a number"));
    // Without an error there is none.
    let actual = sales.actual(train_days, 28)?;
    assert!(error.score(&actual, &actual)?.wrmsse == 0.0);
    Ok(())
}

#[test]
fn what_cannot_be_scored_is_said() -> Result<()> {
    let keys = [keys("A", "CA_1"), keys("B", "CA_1")];
    let message = |sold: [[f32; 3]; 2], dollars: [f64; 2], days| {
        let units = Units::new(sold.concat(), 3).expect("units");
        Wrmsse::new(&keys, &units, days, &dollars)
            .expect_err("a mistake")
            .to_string()
    };
    let fine = [[1., 2., 3.], [0., 1., 0.]];
    assert!(message(fine, [0.0, 0.0], 3).contains("nothing was sold"));
    assert!(message(fine, [1.0, f64::NAN], 3).contains("got NaN for series 1"));
    assert!(message(fine, [1.0, 1.0], 4).contains("must lie in 2 to 3, got 4"));
    let constant = message([[1., 2., 3.], [0., 1., 1.]], [1.0, 1.0], 3);
    assert!(
        constant.contains("`B CA_1`") && constant.contains("no scale"),
        "{constant}"
    );
    let late = message([[1., 2., 3.], [0., 0., 1.]], [1.0, 1.0], 3);
    assert!(late.contains("`B CA_1`"), "{late}");
    assert!(Units::new(vec![1.0, -1.0], 2).is_err_and(|e| e.to_string().contains("day 2")));
    let twice = [keys[0].clone(), keys[0].clone()];
    assert!(m5::hierarchy(&twice).is_err_and(|e| e.to_string().contains("twice")));

    let error = Wrmsse::new(&keys, &Units::new(fine.concat(), 3)?, 3, &[1.0, 1.0])?;
    let ones = Tensor::ones([2, 4], (Kind::Float, tch::Device::Cpu));
    assert!(error.score(&ones.narrow(0, 0, 1), &ones).is_err());
    assert!(error.score(&ones, &ones.narrow(1, 0, 3)).is_err());
    assert!(error.score(&(&ones * f64::NAN), &ones).is_err());
    assert!(
        error
            .score(&ones.narrow(1, 0, 0), &ones.narrow(1, 0, 0))
            .is_err()
    );
    Ok(())
}

#[test]
fn spoilt_files_are_refused_by_name() {
    let spoilt = |file: &str, from: &str, to: &str| {
        let copy = tempfile::tempdir().expect("a folder");
        for name in [
            "sales_train_evaluation.csv",
            "calendar.csv",
            "sell_prices.csv",
        ] {
            let mut text = std::fs::read_to_string(folder().join(name)).expect("a file");
            if name == file {
                assert!(text.contains(from), "{from} is not in {file}");
                text = text.replacen(from, to, 1);
            }
            std::fs::write(copy.path().join(name), text).expect("a copy");
        }
        match m5::read(copy.path()) {
            Ok(_) => "fine".to_owned(),
            Err(error) => error.to_string(),
        }
    };
    let sales = "sales_train_evaluation.csv";
    assert_eq!(spoilt(sales, "id,", "\u{feff}id,"), "fine");
    let row = "FOODS_1_001_CA_1_evaluation,FOODS_1_001,FOODS_1,FOODS,CA_1,CA,";
    for (file, from, to, part) in [
        (sales, "item_id", "item", "no column `item_id`"),
        (sales, "d_5,", "d_6,", "column `d_6`: must be `d_5`"),
        (
            sales,
            "d_100",
            "d_100,d_101,d_102,d_103,d_104,d_105,d_106,d_107,d_108,d_109,d_110,d_111",
            "111 days, but calendar.csv has 110",
        ),
        (
            sales,
            row,
            &format!("{row}7,"),
            "row 2: has 107 fields, the header has 106",
        ),
        (
            sales,
            row,
            &row.replace(",CA,", ",,"),
            "row 2, column `state_id`: is empty",
        ),
        (
            sales,
            "FOODS_1_002,FOODS_1,",
            "FOODS_1_001,FOODS_1,",
            "`FOODS_1_001` stands twice in store `CA_1`",
        ),
        (
            "calendar.csv",
            "d_3\n",
            "d_4\n",
            "row 4, column `d`: expected `d_3`, got `d_4`",
        ),
        (
            "calendar.csv",
            "11101",
            "x",
            "row 2, column `wm_yr_wk`: expected a week like 11101, got `x`",
        ),
        (
            "sell_prices.csv",
            "CA_2,FOODS_1_001,11103",
            "CA_2,FOODS_1_001,11102",
            "two prices in store `CA_2` in week 11102",
        ),
    ] {
        let message = spoilt(file, from, to);
        assert!(
            message.contains(file) && message.contains(part),
            "{message}"
        );
    }
    for wrong in ["-1", "", "many", "nan", "inf"] {
        let text = std::fs::read_to_string(folder().join(sales)).expect("a file");
        let line = text.lines().nth(1).expect("a row").to_owned();
        let mut fields: Vec<&str> = line.split(',').collect();
        fields[9] = wrong;
        let message = spoilt(sales, &line, &fields.join(","));
        assert!(message.contains("row 2, column `d_4`"), "{message}");
    }
    let message = m5::read(Path::new("/nowhere"))
        .expect_err("no folder")
        .to_string();
    assert!(message.contains("/nowhere/calendar.csv"), "{message}");
}

#[test]
fn sales_without_a_price_count_as_no_dollars_and_are_told() -> Result<()> {
    let copy = tempfile::tempdir().expect("a folder");
    for name in [
        "sales_train_evaluation.csv",
        "calendar.csv",
        "sell_prices.csv",
    ] {
        let text = std::fs::read_to_string(folder().join(name)).expect("a file");
        let kept = text
            .lines()
            .filter(|line| !line.starts_with("TX_1,HOBBIES_1_003,"));
        let text: Vec<&str> = kept.collect();
        std::fs::write(copy.path().join(name), text.join("\n")).expect("a copy");
    }
    let sales = m5::read(copy.path())?;
    let at = sales
        .keys
        .iter()
        .position(|keys| keys.item == "HOBBIES_1_003" && keys.store == "TX_1")
        .expect("the series");
    let dollars = sales.dollars(72)?;
    let sold = sales.units.of(at)[44..72]
        .iter()
        .filter(|units| **units > 0.0);
    assert_eq!(dollars.unpriced, sold.count() as u64);
    assert!(dollars.unpriced > 0 && dollars.of[at] == 0.0);
    assert!(sales.dollars(27).is_err() && sales.dollars(101).is_err());
    assert_eq!(sales.price(at, 50), None);
    assert!(sales.price(0, 99).is_some_and(|price| price > 0.0));
    Ok(())
}
