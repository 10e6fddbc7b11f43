//! Fitted on training rows only, equal to scikit-learn, whole after a round trip.

use densely_data::{
    Dataset, NumericTransform, Order, PreprocessConfig, Preprocessor, Split, SplitConfig, quantile,
};
use densely_testkit::{Golden, assert_bits, assert_close};
use proptest::prelude::*;
use tch::{Kind, Tensor};

use crate::{schema, table};

#[test]
fn the_quantile_transform_equals_scikit_learn() {
    let golden = Golden::open(env!("CARGO_MANIFEST_DIR"), "quantile");
    let cases: serde_json::Value = golden.config();
    let cases = cases["cases"].as_array().unwrap().clone();
    assert_eq!(cases.len(), 8);
    for case in cases {
        let case = case.as_str().unwrap();
        let tensor = |name: &str| golden.tensor(&format!("{case}.{name}"));
        let noisy: Vec<f32> = Vec::try_from(tensor("train") + tensor("noise")).unwrap();
        let n = quantile::quantile_count(noisy.len());
        let quantiles = quantile::fit(&noisy, n);
        assert_close(
            &Tensor::from_slice(&quantiles),
            &tensor("quantiles"),
            1e-7,
            0.0,
        );
        // From the reference's own quantiles, so that a last bit of those cannot hide an error here.
        let quantiles: Vec<f64> = Vec::try_from(tensor("quantiles")).unwrap();
        let inputs: Vec<f32> = Vec::try_from(tensor("input")).unwrap();
        let outputs = Tensor::from_slice(&quantile::transform(&inputs, &quantiles));
        assert_close(&outputs, &tensor("output"), 1e-6, 1e-7);
    }
}

proptest! {
    #[test]
    fn the_transform_keeps_order_and_stays_in_bounds(mut values in prop::collection::vec(-1e3f32..1e3, 20..200)) {
        let quantiles = quantile::fit(&values, quantile::quantile_count(values.len()));
        prop_assert!(quantiles.windows(2).all(|pair| pair[0] <= pair[1]));
        values.sort_by(f32::total_cmp);
        let outputs = quantile::transform(&values, &quantiles);
        prop_assert!(outputs.windows(2).all(|pair| pair[0] <= pair[1]));
        prop_assert!(outputs.iter().all(|y| y.abs() < 5.2));
    }
}

const CSV: &str = "x,c,b,y\n1,a,0,10.5\n2,b,1,20.5\n3,a,0,30.5\n4,b,1,40.5\n100,z,0,1000\n,,,60\n";

/// Rows 0 to 3 train; row 4 has an unseen category, row 5 no values.
fn fitted(numeric: NumericTransform) -> (Preprocessor, Dataset, Dataset) {
    let table = table(CSV);
    let schema = schema(&table, "y");
    let split = Split {
        train: vec![0, 1, 2, 3],
        valid: vec![4],
        test: vec![5],
    };
    let config = PreprocessConfig {
        numeric,
        ..PreprocessConfig::default()
    };
    let fitted = Preprocessor::fit(&table, &schema, &split, &config).unwrap();
    let train = fitted.transform(&table, Some(&split.train), true).unwrap();
    let rest = fitted.transform(&table, Some(&[4, 5]), true).unwrap();
    (fitted, train, rest)
}

#[test]
fn only_training_rows_decide() {
    let (fitted, train, rest) = fitted(NumericTransform::Standard);
    assert_eq!(fitted.cat_cardinalities(), [2, 2]);
    let std = 1.25f64.sqrt();
    let expected = Tensor::from_slice(&[-1.5, -0.5, 0.5, 1.5]).unsqueeze(1) / std;
    assert_close(train.x_num.as_ref().unwrap(), &expected, 1e-6, 0.0);
    // Row 4: far outside, category `z` unseen. Row 5: missing number is 0, missing categories are unseen.
    let expected = Tensor::from_slice(&[97.5 / std, 0.0]).unsqueeze(1);
    assert_close(rest.x_num.as_ref().unwrap(), &expected, 1e-6, 0.0);
    let codes: Vec<i32> = Vec::try_from(rest.x_cat.as_ref().unwrap().flatten(0, 1)).unwrap();
    assert_eq!(codes, [0, 2, 2, 2]); // b comes before c: binary columns first
    assert_eq!(fitted.target_scale(), Some((25.5, 125f64.sqrt())));
}

#[test]
fn a_saved_preprocessor_gives_the_same_bits() {
    for numeric in [
        NumericTransform::default(),
        NumericTransform::Standard,
        NumericTransform::None,
    ] {
        let (fitted, train, _) = fitted(numeric);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.json");
        fitted.save(&path).unwrap();
        let loaded = Preprocessor::load(&path).unwrap();
        let again = loaded
            .transform(&table(CSV), Some(&[0, 1, 2, 3]), true)
            .unwrap();
        assert_bits(again.x_num.as_ref().unwrap(), train.x_num.as_ref().unwrap());
        assert_bits(again.y.as_ref().unwrap(), train.y.as_ref().unwrap());
        std::fs::write(&path, "{}").unwrap();
        assert!(Preprocessor::load(&path).is_err());
    }
}

#[test]
fn features_in_a_file_are_those_in_memory() {
    let (fitted, train, _) = fitted(NumericTransform::Standard);
    let table = table(CSV);
    let spilled = fitted
        .transform_within(&table, Some(&[0, 1, 2, 3]), true, 0)
        .unwrap();
    assert_bits(
        &spilled.x_num.as_ref().unwrap().contiguous(),
        train.x_num.as_ref().unwrap(),
    );
    assert_bits(
        &spilled.x_cat.as_ref().unwrap().contiguous(),
        train.x_cat.as_ref().unwrap(),
    );
    let batch = spilled
        .epoch(3, Order::Shared, 0, 0, 0)
        .next()
        .unwrap()
        .unwrap();
    let same = train
        .epoch(3, Order::Shared, 0, 0, 0)
        .next()
        .unwrap()
        .unwrap();
    assert_bits(&batch.x_num.unwrap(), &same.x_num.unwrap());
    assert_bits(&batch.x_cat.unwrap(), &same.x_cat.unwrap());
    let prefix = format!("densely-features-{}-", std::process::id());
    let mut left = std::fs::read_dir(std::env::temp_dir()).unwrap();
    assert!(!left.any(|e| {
        e.unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with(&prefix)
    }));
}

#[test]
fn rare_categories_beyond_the_limit_count_as_unseen() {
    let rows: String = (0..60)
        .map(|i| format!("{},{i}\n", ["a", "a", "b", "b", "c", "d"][i % 6]))
        .collect();
    let table = table(&format!("c,y\n{rows}"));
    let schema = schema(&table, "y");
    let split = SplitConfig::Random {
        valid: 0.2,
        test: 0.2,
        seed: 0,
    }
    .split(&table, &schema)
    .unwrap();
    let config = PreprocessConfig {
        max_categories: 2,
        ..PreprocessConfig::default()
    };
    let fitted = Preprocessor::fit(&table, &schema, &split, &config).unwrap();
    assert_eq!(fitted.cat_cardinalities(), [2]);
    assert!(fitted.warnings()[0].contains("column `c` has 4 categories"));
    let data = fitted.transform(&table, Some(&[0, 2, 4, 5]), true).unwrap();
    let codes: Vec<i32> = Vec::try_from(data.x_cat.unwrap().flatten(0, 1)).unwrap();
    assert_eq!(codes, [0, 1, 2, 2]);
}

fn numbered(rows: i64) -> Dataset {
    let x_num = Tensor::arange(rows, tch::kind::FLOAT_CPU).unsqueeze(1);
    let y = x_num.squeeze_dim(1);
    Dataset {
        x_num: Some(x_num),
        x_cat: None,
        y: Some(y),
        weight: None,
    }
}

fn rows_of(data: &Dataset, order: Order, epoch: u64, skip: u64) -> Vec<Vec<i64>> {
    data.epoch(4, order, 7, epoch, skip)
        .map(|batch| Vec::try_from(batch.unwrap().y.unwrap().to_kind(Kind::Int64)).unwrap())
        .collect()
}

#[test]
fn an_epoch_is_a_permutation_that_depends_on_seed_and_epoch_alone() {
    let data = numbered(10);
    let first = rows_of(&data, Order::Shared, 0, 0);
    assert_eq!(first.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2]);
    let mut all = first.concat();
    all.sort_unstable();
    assert_eq!(all, (0..10).collect::<Vec<i64>>());
    assert_eq!(rows_of(&data, Order::Shared, 0, 0), first);
    assert_ne!(rows_of(&data, Order::Shared, 1, 0), first);
    assert_eq!(rows_of(&data, Order::Shared, 0, 2), first[2..]);
}

#[test]
fn an_epoch_taken_up_anywhere_goes_on_with_the_same_batches() {
    // 38 batches: more than are gathered at a time, and again, and some.
    let data = numbered(150);
    for order in [Order::Shared, Order::PerMember { k: 3 }] {
        let all = rows_of(&data, order, 3, 0);
        assert_eq!(all.len(), 38);
        assert_eq!(all[37].len() % 2, 0);
        for skip in 0..=38 {
            assert_eq!(rows_of(&data, order, 3, skip), all[skip as usize..]);
        }
    }
}

#[test]
fn members_have_permutations_of_their_own() {
    let data = numbered(10);
    let k = 3;
    let batches = rows_of(&data, Order::PerMember { k }, 0, 0);
    assert_eq!(
        batches.iter().map(Vec::len).collect::<Vec<_>>(),
        [12, 12, 6]
    );
    let all = batches.concat();
    let member = |i: usize| all.iter().skip(i).step_by(k).copied().collect::<Vec<i64>>();
    for i in 0..k {
        let mut rows = member(i);
        rows.sort_unstable();
        assert_eq!(rows, (0..10).collect::<Vec<i64>>());
    }
    assert_ne!(member(0), member(1));
}
