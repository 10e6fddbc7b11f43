//! Feature maps: FuxiCTR's ids on its own tiny table, the file, and what is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{ListBuilder, StringBuilder};
use arrow_array::{ArrayRef, RecordBatch, StringArray};
use densely_core::{Result, tch};
use densely_data::{Batches, RowBatch};
use densely_recsys::Field;
use densely_recsys::feature_map::{
    Builder, Column, Dtype, FeatureMap, Kind, Layout, Normalizer, Padding, Preprocess, Vocabulary,
};
use densely_testkit::{Golden, assert_bits, assert_close};
use serde::Deserialize;
use tempfile::TempDir;

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/tiny_csv")
        .join(name)
}

/// The columns of the golden, in our words.
fn columns(golden: &Theirs) -> Vec<Column> {
    golden.columns.iter().map(TheirColumn::ours).collect()
}

#[derive(Debug, Deserialize)]
struct Theirs {
    columns: Vec<TheirColumn>,
    vocab_sizes: BTreeMap<String, i64>,
    total_features: i64,
    num_fields: usize,
    tokens: BTreeMap<String, BTreeMap<String, i64>>,
}

#[derive(Debug, Deserialize)]
struct TheirColumn {
    name: String,
    dtype: Dtype,
    r#type: Kind,
    min_categr_count: Option<u64>,
    preprocess: Option<String>,
    normalizer: Option<Normalizer>,
    fill_na: Option<i64>,
    splitter: Option<String>,
    max_len: Option<i64>,
    padding: Option<Padding>,
    share_embedding: Option<String>,
}

impl TheirColumn {
    fn ours(&self) -> Column {
        let mut column = Column::new(&self.name, self.r#type);
        column.dtype = self.dtype;
        column.min_count = self.min_categr_count.unwrap_or(1);
        column.normalizer = self.normalizer;
        column.fill_na = self.fill_na.map(|value| format!("{value}.0"));
        column.splitter = self.splitter.clone().unwrap_or("^".to_owned());
        column.max_len = self.max_len.unwrap_or(0);
        column.padding = self.padding.unwrap_or_default();
        column.share_embedding.clone_from(&self.share_embedding);
        if let Some((rule, from)) = self.preprocess.as_ref().and_then(|p| p.split_once('(')) {
            column.from = Some(from.trim_end_matches(')').to_owned());
            column.preprocess =
                (rule == "convert_to_bucket").then_some(Preprocess::ConvertToBucket);
        }
        column
    }
}

/// Counts all rows of a table.
fn build(path: &Path, columns: Vec<Column>, size: usize) -> Result<FeatureMap> {
    let mut builder = Builder::new("tiny_csv", "clk", None, columns)?;
    for rows in Batches::open(path, &builder.sources(), size)? {
        builder.add(&rows?, |_| true)?;
    }
    builder.finish()
}

fn encode(map: &FeatureMap, path: &Path, size: usize) -> Result<densely_core::Tensors> {
    let layout = Layout::new(&map.fields());
    let mut words = Vec::new();
    for rows in Batches::open(path, &map.sources(), size)? {
        words.push(map.encode(&rows?)?.words());
    }
    layout.tensors(&tch::Tensor::cat(&words, 0), tch::Device::Cpu)
}

#[test]
fn ids_equal_those_of_fuxictr_on_every_split_however_it_is_cut() -> Result<()> {
    let golden = Golden::open(env!("CARGO_MANIFEST_DIR"), "feature_map");
    let theirs: Theirs = golden.config();
    for size in [7, 1000] {
        let map = build(&tiny("train_sample.csv"), columns(&theirs), size)?;
        assert_eq!(map.total_features(), theirs.total_features);
        assert_eq!(map.fields().len(), theirs.num_fields);
        for (name, size) in &theirs.vocab_sizes {
            let vocabulary = map.vocabulary(name).expect("a vocabulary");
            assert_eq!(vocabulary.size(), *size, "{name}");
            for (token, id) in theirs.tokens[name]
                .iter()
                .filter(|(t, _)| !t.starts_with("__"))
            {
                assert_eq!(vocabulary.id(token)?, *id, "{name}: `{token}`");
            }
            assert_eq!(vocabulary.unknown(), Some(theirs.tokens[name]["__OOV__"]));
            assert_eq!(vocabulary.id("never seen")?, theirs.tokens[name]["__OOV__"]);
        }
        for part in ["train", "valid", "test"] {
            let ours = encode(&map, &tiny(&format!("{part}_sample.csv")), size)?;
            for column in &theirs.columns {
                let expected = golden.tensor(&format!("{part}.{}", column.name));
                if column.r#type == Kind::Numeric {
                    assert_close(&ours[&column.name], &expected, 1e-6, 1e-7);
                } else {
                    assert_bits(&ours[&column.name], &expected);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_saved_map_encodes_alike_and_fuxictr_s_own_files_are_read() -> Result<()> {
    let golden = Golden::open(env!("CARGO_MANIFEST_DIR"), "feature_map");
    let theirs: Theirs = golden.config();
    let map = build(&tiny("train_sample.csv"), columns(&theirs), 1000)?;
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("feature_map.json");
    map.save(&path)?;
    assert_eq!(FeatureMap::load(&path)?, map);

    let (json, vocab) = (
        tiny("fuxictr/feature_map.json"),
        tiny("fuxictr/feature_vocab.json"),
    );
    let read = FeatureMap::from_fuxictr(&json, Some(&vocab), &columns(&theirs), None)?;
    assert_eq!(read.fields(), map.fields());
    let (ours, other) = (
        encode(&map, &tiny("valid_sample.csv"), 1000)?,
        encode(&read, &tiny("valid_sample.csv"), 1000)?,
    );
    for column in theirs.columns.iter().filter(|c| c.r#type != Kind::Numeric) {
        assert_bits(&other[&column.name], &ours[&column.name]);
    }
    let error = FeatureMap::load(&json)
        .expect_err("FuxiCTR's own")
        .to_string();
    assert!(error.contains("FuxiCTR's own feature map"), "{error}");
    Ok(())
}

#[test]
fn fields_that_do_not_fit_the_weights_are_refused_by_name() -> Result<()> {
    let golden = Golden::open(env!("CARGO_MANIFEST_DIR"), "feature_map");
    let map = build(&tiny("train_sample.csv"), columns(&golden.config()), 1000)?;
    let fields = map.fields();
    map.check_fields(&fields)?;
    let refused = |fields: &[Field], words: &str| {
        let error = map.check_fields(fields).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    };
    let mut permuted = fields.clone();
    permuted.swap(2, 5);
    refused(
        &permuted,
        "`brand` is field 3 of the weights and field 6 of the feature map",
    );
    refused(
        &fields[..fields.len() - 1],
        "a field `latest_clicks`, which the weights lack",
    );
    let mut more = fields.clone();
    more.push(Field::Numeric {
        name: "age".to_owned(),
    });
    refused(
        &more,
        "the weights have a field `age`, which the feature map lacks",
    );
    let mut larger = fields;
    larger[0] = Field::Categorical {
        name: "userid".to_owned(),
        vocab_size: 99,
        share_embedding: None,
    };
    refused(&larger, "`userid` differs");
    Ok(())
}

/// A table of these lines.
fn table(folder: &TempDir, lines: &[&str]) -> PathBuf {
    let path = folder.path().join("table.csv");
    std::fs::write(&path, lines.join("\n")).expect("written");
    path
}

#[test]
fn hashing_needs_no_counting_and_knows_missing_values() -> Result<()> {
    let folder = TempDir::new().expect("a folder");
    let path = table(&folder, &["user,clk", "anna,1", "ben,0", ",0", "anna,0"]);
    let mut column = Column::new("user", Kind::Categorical);
    column.hash_buckets = Some(50);
    let map = build(&path, vec![column], 10)?;
    assert_eq!(map.fields()[0].vocab_size(), Some(52));
    let ids: Vec<i64> = Vec::try_from(&encode(&map, &path, 10)?["user"])?;
    assert_eq!((ids[0], ids[2]), (ids[3], 51));
    assert_ne!(ids[0], ids[1]);
    assert_eq!(FeatureMap::from_json(&map.to_json()?, Path::new("x"))?, map);
    Ok(())
}

#[test]
fn every_mistake_in_a_table_has_its_sentence() {
    let folder = TempDir::new().expect("a folder");
    let fails = |lines: &[&str], columns: Vec<Column>, words: &str| {
        let path = table(&folder, lines);
        let result = build(&path, columns, 2).and_then(|map| encode(&map, &path, 2));
        let error = result.expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    };
    let sequence = || vec![Column::new("history", Kind::Sequence)];
    let ids = || {
        let mut column = Column::new("item", Kind::Categorical);
        column.vocab_size = Some(10);
        vec![column]
    };
    fails(
        &["user,clk", "a,1"],
        sequence(),
        "no column `history`; nearest: `user`",
    );
    fails(
        &["history,clk", "a|b|c,1", "d|e,0", "f,0"],
        sequence(),
        "column `history`: no sequence has `^` between tokens, but 2 of 3 have `|`: is that the delimiter?",
    );
    fails(
        &["history,clk", ",1", ",0"],
        sequence(),
        "column `history`: every sequence of the training rows is empty",
    );
    fails(
        &["item,clk", "3,1", "-2,0"],
        ids(),
        "row 3, column `item`: the id -2 is negative",
    );
    fails(
        &["item,clk", "3,1", "5,0", "12,0"],
        ids(),
        "row 4, column `item`: the id 12 is beyond the vocabulary, whose last is 9",
    );
    fails(
        &["price,clk", "3,1", "cheap,0"],
        vec![Column::new("price", Kind::Numeric)],
        "row 3, column `price`: expected a number, got `cheap`",
    );
    fails(
        &["clk,x", "1,2"],
        vec![Column::new("clk", Kind::Categorical)],
        "is the label: a model that sees it has nothing to learn",
    );
    let mut shared = Column::new("history", Kind::Sequence);
    shared.share_embedding = Some("item".to_owned());
    fails(
        &["history,clk", "a^b,1"],
        vec![shared],
        "shares the vocabulary of `item`, which is no column before it",
    );
}

#[test]
fn empty_histories_are_padding_and_counted() -> Result<()> {
    let folder = TempDir::new().expect("a folder");
    let path = table(&folder, &["history,clk", "a^b,1", ",0", "b,0"]);
    let map = build(&path, vec![Column::new("history", Kind::Sequence)], 10)?;
    let rows = Batches::open(&path, &map.sources(), 10)?
        .next()
        .expect("a batch")?;
    let encoded = map.encode(&rows)?;
    assert_eq!((encoded.empty_sequences, encoded.rows_of_padding), (1, 1));
    let ids = &encode(&map, &path, 10)?["history"];
    assert_eq!(Vec::<Vec<i64>>::try_from(ids)?, [[2, 1], [0, 0], [1, 0]]);
    let Some(Vocabulary::Tokens(tokens)) = map.vocabulary("history") else {
        panic!("tokens");
    };
    assert_eq!(
        (
            tokens.len(),
            map.vocabulary("history").map(Vocabulary::size)
        ),
        (2, Some(4))
    );
    Ok(())
}

#[test]
fn a_list_column_encodes_like_a_text_with_delimiters() -> Result<()> {
    let lists = [
        Some(vec!["a", "b", "b"]),
        None,
        Some(vec!["c"]),
        Some(vec![]),
    ];
    let texts = [Some("a^b^b"), None, Some("c"), Some("")];
    let mut builder = ListBuilder::new(StringBuilder::new());
    for list in &lists {
        for token in list.iter().flatten() {
            builder.values().append_value(token);
        }
        builder.append(list.is_some());
    }
    let rows = |array: ArrayRef| RowBatch {
        path: Path::new("made").into(),
        batch: RecordBatch::try_from_iter([("history", array)]).expect("a batch"),
        numbers: (1..=4).collect(),
    };
    let batches = [
        rows(Arc::new(builder.finish())),
        rows(Arc::new(StringArray::from(texts.to_vec()))),
    ];
    let mut encoded = Vec::new();
    for rows in &batches {
        let columns = vec![Column::new("history", Kind::Sequence)];
        let mut builder = Builder::new("made", "clk", None, columns)?;
        builder.add(rows, |_| true)?;
        let map = builder.finish()?;
        encoded.push(Vec::<Vec<i32>>::try_from(map.encode(rows)?.words())?);
    }
    assert_eq!(encoded[0], [[2, 1, 1], [0, 0, 0], [3, 0, 0], [0, 0, 0]]);
    assert_eq!(encoded[0], encoded[1]);
    let mut builder = Builder::new(
        "made",
        "clk",
        None,
        vec![Column::new("history", Kind::Categorical)],
    )?;
    let error = builder
        .add(&batches[0], |_| true)
        .expect_err("lists")
        .to_string();
    assert!(
        error.contains("holds lists: declare it a sequence"),
        "{error}"
    );
    Ok(())
}
