//! TabReD's folders: equal arrays from every layout, splits by the rule, and files that lie.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use densely_core::Result;
use densely_data::schema::Role;
use densely_data::split::Split;
use densely_tabular::fit::Prepared;
use densely_tabular::settings::DataSettings;
use densely_tabular::tabred::{Layout, SETS, TARGET, TabRed, npy, ranks, splits};
use densely_testkit::Golden;
use densely_train::metrics::Metric;
use tch::{Kind, Tensor};

fn golden(name: &str) -> Golden {
    Golden::open(env!("CARGO_MANIFEST_DIR"), name)
}

/// The three folders that NumPy wrote, and a folder of odd files.
struct Folders {
    golden: Golden,
    folder: tempfile::TempDir,
}

impl Folders {
    fn new() -> Self {
        let golden = golden("tabred_folders");
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in golden.group("file.") {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, Vec::<u8>::try_from(bytes).unwrap()).unwrap();
        }
        Self { golden, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn open(&self, layout: &str, split: &str) -> Result<TabRed> {
        TabRed::open(&self.path(layout), split)
    }

    /// The sentence of the error that opening ends in; it must name the file.
    fn complaint(&self, layout: &str, split: &str, file: &str) -> String {
        let error = self.open(layout, split).unwrap_err().to_string();
        assert!(error.contains(file), "`{error}` does not name {file}");
        error
    }
}

/// The columns `kind_0`, `kind_1` … side by side.
fn matrix(set: &TabRed, kind: &str) -> Tensor {
    let names = set.table.names();
    let columns = names.iter().filter(|name| {
        name.strip_prefix(kind)
            .is_some_and(|rest| rest.starts_with('_'))
    });
    let columns: Vec<Tensor> = columns
        .map(|name| Tensor::from_slice(&set.table.numbers(name).unwrap()))
        .collect();
    Tensor::stack(&columns, 1)
}

fn rows(xs: &Tensor) -> Vec<u32> {
    let rows: Vec<i64> = Vec::try_from(xs.to_kind(Kind::Int64)).unwrap();
    rows.into_iter().map(|row| row as u32).collect()
}

fn assert_equal(actual: &Tensor, expected: &Tensor) {
    let expected = expected.to_kind(Kind::Double);
    assert_eq!(actual.size(), expected.size());
    let same = actual.eq_tensor(&expected);
    let both_nan = actual.isnan().logical_and(&expected.isnan());
    assert!(bool::try_from(same.logical_or(&both_nan).all()).unwrap());
}

#[test]
fn the_three_layouts_give_the_arrays_that_numpy_wrote() {
    let folders = Folders::new();
    for (name, layout) in [
        ("new", Layout::New),
        ("old", Layout::Old),
        ("parts", Layout::Parts),
    ] {
        let set = folders.open(name, "default").unwrap();
        assert_eq!(set.layout, layout);
        assert_eq!(
            (set.info.name.as_str(), set.info.score),
            ("made", Metric::Rmse)
        );
        assert_eq!(set.warnings, Vec::<String>::new());
        for kind in ["num", "bin", "cat", "meta"] {
            if kind == "meta" && layout == Layout::Parts {
                assert!(
                    !set.table
                        .names()
                        .iter()
                        .any(|name| name.starts_with("meta"))
                );
                continue;
            }
            assert_equal(
                &matrix(&set, kind),
                &folders.golden.tensor(&format!("output.{kind}")),
            );
        }
        let y = Tensor::from_slice(&set.table.numbers(TARGET).unwrap());
        assert_equal(&y, &folders.golden.tensor("output.y"));
        let expected = |part: &str| {
            rows(
                &folders
                    .golden
                    .tensor(&format!("output.split.default.{part}")),
            )
        };
        assert_eq!(set.split.train, expected("train"));
        assert_eq!(set.split.valid, expected("val"));
        assert_eq!(set.split.test, expected("test"));
    }
}

#[test]
fn other_orders_of_bytes_and_of_columns_are_read() {
    let folders = Folders::new();
    let expected = folders.golden.tensor("output.num");
    for odd in ["f64", "by_column", "big_endian"] {
        std::fs::copy(
            folders.path(&format!("odd/{odd}.npy")),
            folders.path("new/x_num.npy"),
        )
        .unwrap();
        assert_equal(
            &matrix(&folders.open("new", "default").unwrap(), "num"),
            &expected,
        );
    }
}

#[test]
fn splits_are_read_from_their_files() {
    let folders = Folders::new();
    for layout in ["new", "old"] {
        for split in ["random-1", "sliding-window-2"] {
            let set = folders.open(layout, split).unwrap();
            for (part, found) in [
                ("train", &set.split.train),
                ("val", &set.split.valid),
                ("test", &set.split.test),
            ] {
                let expected = folders
                    .golden
                    .tensor(&format!("output.split.{split}.{part}"));
                assert_eq!(*found, rows(&expected));
            }
        }
    }
    let error = folders.open("parts", "random-0").unwrap_err().to_string();
    assert!(error.contains("no other split than `default`"), "{error}");
    let error = folders.complaint("new", "randm-0", "splits/randm-0");
    assert!(error.contains("nearest: `random-0`"), "{error}");
    for wrong in ["../new", "", "a/b"] {
        let error = folders.open("new", wrong).unwrap_err().to_string();
        assert!(error.contains("letters, digits"), "{error}");
    }
}

#[test]
fn random_splits_are_numpys_bit_for_bit() {
    let golden = golden("tabred_random");
    let order: Vec<u32> = (0..97).collect();
    for (index, name) in ["random-0", "random-1", "random-2"].iter().enumerate() {
        let split = splits::random(&order, index, 10).unwrap();
        for (part, found) in [
            ("train", &split.train),
            ("val", &split.valid),
            ("test", &split.test),
        ] {
            let expected = golden.tensor(&format!("output.small.{name}.{part}"));
            assert_eq!(*found, rows(&expected), "{name} {part}");
        }
        // The real sizes of three sets: first and last row of each part and a sum that tells their order.
        for (count, window) in [(260_753, 20_000), (28_321, 4_500), (381_664, 50_000)] {
            let order: Vec<u32> = (0..count).collect();
            let Split { train, valid, test } = splits::random(&order, index, window).unwrap();
            let checks: Vec<i64> = [train, valid, test]
                .iter()
                .flat_map(|part| {
                    let sum = (1u64..)
                        .zip(part)
                        .fold(0u64, |sum, (i, row)| sum.wrapping_add(i * u64::from(*row)));
                    [
                        i64::from(part[0]),
                        i64::from(part[part.len() - 1]),
                        sum as i64,
                    ]
                })
                .collect();
            let expected = golden.tensor(&format!("output.{count}_{window}.{name}"));
            assert_eq!(
                checks,
                Vec::<i64>::try_from(expected.flatten(0, 1)).unwrap()
            );
        }
    }
}

/// A folder that calls itself Sberbank Housing, with 18,040 rows: just enough for its windows of 4,500.
fn pretender(folder: &Path) {
    let rows = 18_040;
    let write = |name: &str, shape: &[usize], values: &[f32]| {
        npy::write(&folder.join(name), shape, values).unwrap();
    };
    let wave: Vec<f32> = (0..rows).map(|i| (i * 37 % 101) as f32).collect();
    write("x_num.npy", &[rows, 1], &wave);
    write("y.npy", &[rows], &wave);
    // Rows are not in the order of time, and two rows share each time.
    let times: Vec<i64> = (0..rows as i64).map(|i| (i * 7919 % 18_040) / 2).collect();
    npy::write(&folder.join("x_meta.npy"), &[rows, 1], &times).unwrap();
    let info = r#"{"name": "sberbank-housing", "task_type": "regression"}"#;
    std::fs::write(folder.join("info.json"), info).unwrap();
}

#[test]
fn windows_without_files_follow_time_and_random_ones_hold_the_same_rows() {
    let folder = tempfile::tempdir().unwrap();
    pretender(folder.path());
    let mut tested = BTreeSet::new();
    let mut newest = i64::MIN;
    for index in 0..3 {
        let window = TabRed::open(folder.path(), &format!("sliding-window-{index}")).unwrap();
        let times = window.table.numbers("meta_0").unwrap();
        let span = |rows: &[u32]| {
            let of: Vec<i64> = rows.iter().map(|row| times[*row as usize] as i64).collect();
            assert!(of.is_sorted());
            (of[0], of[of.len() - 1])
        };
        let Split { train, valid, test } = &window.split;
        assert_eq!((train.len(), valid.len(), test.len()), (40, 4_500, 4_500));
        assert!(span(train).1 <= span(valid).0 && span(valid).1 <= span(test).0);
        assert!(newest <= span(test).0);
        newest = span(test).1;
        assert!(
            test.iter().all(|row| tested.insert(*row)),
            "test parts overlap"
        );
        let random = TabRed::open(folder.path(), &format!("random-{index}")).unwrap();
        let all = |split: &Split| -> BTreeSet<u32> {
            split
                .train
                .iter()
                .chain(&split.valid)
                .chain(&split.test)
                .copied()
                .collect()
        };
        assert_eq!(all(&window.split), all(&random.split));
        assert_eq!(random.split.train.len(), 40);
        assert!(window.split.train != random.split.train);
    }
    // The folder is not what it calls itself, and says so: expected, found.
    let set = TabRed::open(folder.path(), "random-0").unwrap();
    assert!(
        set.warnings
            .contains(&"data set `sberbank-housing`: rows: expected 28321, found 18040".to_owned()),
        "{:?}",
        set.warnings
    );
    assert!(
        set.warnings
            .iter()
            .any(|w| w.contains("binary features: expected 17, found 0"))
    );
    // The rule needs the time, and no rule gives the default split.
    for split in ["default", "sliding-window-3", "random-9"] {
        assert!(TabRed::open(folder.path(), split).is_err());
    }
    std::fs::remove_file(folder.path().join("x_meta.npy")).unwrap();
    let error = TabRed::open(folder.path(), "random-0")
        .unwrap_err()
        .to_string();
    assert!(error.contains("without meta columns"), "{error}");
}

#[test]
fn meta_columns_are_never_features() {
    let folders = Folders::new();
    let set = folders.open("new", "default").unwrap();
    assert_eq!(set.roles["meta_0"], Role::Ignore);
    assert_eq!(set.roles["meta_1"], Role::Ignore);
    let settings = DataSettings {
        roles: set.roles.clone(),
        task: Some(set.info.task),
        ..DataSettings::new(TARGET)
    };
    let prepared = Prepared::with_split(&set.table, &settings, set.split).unwrap();
    let features: Vec<&str> = prepared
        .preprocessor
        .num_columns()
        .chain(prepared.preprocessor.cat_columns())
        .collect();
    assert_eq!(
        features,
        [
            "num_0", "num_1", "num_2", "bin_0", "bin_1", "cat_0", "cat_1"
        ]
    );
    // Binary columns are categories of two, as in TabM's code.
    assert_eq!(prepared.preprocessor.cat_cardinalities()[..2], [2, 2]);
    assert_eq!(prepared.train.len(), 24);
    assert_eq!(prepared.split.test, (32..40).collect::<Vec<u32>>());
}

#[test]
fn a_split_that_does_not_fit_the_table_is_refused() {
    let folders = Folders::new();
    let set = folders.open("new", "default").unwrap();
    let settings = DataSettings {
        roles: set.roles.clone(),
        ..DataSettings::new(TARGET)
    };
    for (valid, complaint) in [
        (vec![40], "row 40"),
        (vec![3], "twice"),
        (vec![], "`valid` is empty"),
    ] {
        let split = Split {
            valid,
            ..set.split.clone()
        };
        let error = Prepared::with_split(&set.table, &settings, split)
            .unwrap_err()
            .to_string();
        assert!(error.contains(complaint), "{error}");
    }
}

#[test]
fn absent_and_truncated_files_are_named() {
    let folders = Folders::new();
    for file in [
        "new/x_num.npy",
        "new/y.npy",
        "new/splits/default/val.npy",
        "new/info.json",
    ] {
        let path = folders.path(file);
        let bytes = std::fs::read(&path).unwrap();
        for length in [0, 5, 60, bytes.len() - 1]
            .into_iter()
            .filter(|n| *n < bytes.len())
        {
            std::fs::write(&path, &bytes[..length]).unwrap();
            folders.complaint("new", "default", &file["new/".len()..]);
        }
        std::fs::write(&path, &bytes).unwrap();
    }
    let path = folders.path("new/splits/default/val.npy");
    std::fs::remove_file(&path).unwrap();
    folders.complaint("new", "default", "val.npy");
    std::fs::create_dir(&path).unwrap();
    folders.complaint("new", "default", "val.npy");
    std::fs::remove_file(folders.path("parts/X_num_val.npy")).unwrap();
    folders.complaint("parts", "default", "X_num_val.npy");
    std::fs::remove_file(folders.path("new/y.npy")).unwrap();
    let error = folders.open("new", "default").unwrap_err().to_string();
    assert!(error.contains("here are no labels"), "{error}");
    folders.complaint("nowhere", "default", "nowhere");
}

#[test]
fn wrong_types_and_shapes_are_named() {
    let folders = Folders::new();
    let check = |file: &str, complaint: &str| {
        let error = folders.complaint("new", "default", file);
        assert!(error.contains(complaint), "{error}");
    };
    let path = |file: &str| folders.path(&format!("new/{file}"));
    let keep = std::fs::read(path("x_num.npy")).unwrap();
    npy::write(&path("x_num.npy"), &[40, 1], &[1i64; 40]).unwrap();
    check(
        "x_num.npy",
        "expected float32 or float64 values, got dtype '<i8'",
    );
    npy::write(&path("x_num.npy"), &[39, 1], &[1f32; 39]).unwrap();
    check("x_num.npy", "expected 40 rows, as the labels have, got 39");
    npy::write(&path("x_num.npy"), &[40], &[1f32; 40]).unwrap();
    check(
        "x_num.npy",
        "expected two dimensions, rows and columns, got shape [40]",
    );
    let header = |descr: &str, shape: &str| {
        let header = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.bytes());
        std::fs::write(path("x_num.npy"), bytes).unwrap();
    };
    header("'|O'", "(40, 3)");
    check("x_num.npy", "got dtype '|O'");
    header("[('a', '<f4'), ('b', '<i8')]", "(40,)");
    check("x_num.npy", "expected an array of numbers");
    header("'<f4'", "(0, 1000000000000000)");
    check("x_num.npy", "expected two dimensions");
    header("'<f4'", "(1000000000000000, 0)");
    check("x_num.npy", "expected 40 rows");
    header("'<f4'", "(4611686018427387904, 4)");
    check("x_num.npy", "its header says shape");
    std::fs::write(path("x_num.npy"), keep).unwrap();
    npy::write(&path("x_cat.npy"), &[40, 1], &[1f32; 40]).unwrap();
    check(
        "x_cat.npy",
        "expected int32 or int64 values, got dtype '<f4'",
    );
    npy::write(&path("x_cat.npy"), &[40, 1], &[i64::MAX; 40]).unwrap();
    check("x_cat.npy", "expected integers up to 2^53");
}

#[test]
fn labels_and_rows_of_splits_are_checked() {
    let folders = Folders::new();
    let path = |file: &str| folders.path(&format!("new/{file}"));
    let check = |file: &str, complaint: &str| {
        let error = folders.complaint("new", "default", file);
        assert!(error.contains(complaint), "{error}");
    };
    for (rows, complaint) in [
        (
            vec![24i64, 40],
            "row 2: expected a row from 0 to 39, got 40",
        ),
        (vec![-1], "got -1"),
        (vec![24, 25, 24], "row 3: row 24 is in the split twice"),
        (vec![23], "row 23 is in the split twice"),
        (vec![], "expected 1 to 40 row numbers, got 0"),
        ((0..41).collect(), "expected 1 to 40 row numbers, got 41"),
    ] {
        npy::write(&path("splits/default/val.npy"), &[rows.len()], &rows).unwrap();
        check("splits/default/val.npy", complaint);
    }
    npy::write(&path("splits/default/val.npy"), &[1], &[1f32]).unwrap();
    check("splits/default/val.npy", "expected int32 or int64");
    let mut y = vec![1f32; 40];
    y[6] = f32::NAN;
    npy::write(&path("y.npy"), &[40], &y).unwrap();
    check("y.npy", "row 7: expected a finite label, got NaN");
    npy::write(&path("y.npy"), &[40, 2], &[1f32; 80]).unwrap();
    check("y.npy", "expected one dimension");
    npy::write::<f32>(&path("y.npy"), &[0], &[]).unwrap();
    check("y.npy", "labels, got 0");
    for (info, complaint) in [
        ("{", "damaged"),
        ("{}", "task_type"),
        (r#"{"task_type": "ranking"}"#, "got `ranking`"),
        (
            r#"{"task_type": "regression", "score": "roc-auc"}"#,
            "got `roc-auc`",
        ),
    ] {
        std::fs::write(path("info.json"), info).unwrap();
        check("info.json", complaint);
    }
    // Labels of classes are integers, and the score of two classes may be the area under the curve.
    std::fs::write(
        path("info.json"),
        r#"{"task_type": "binclass", "score": "roc-auc"}"#,
    )
    .unwrap();
    npy::write(&path("y.npy"), &[40], &[1f32; 40]).unwrap();
    check("y.npy", "expected int32 or int64");
    let labels: Vec<i64> = (0..40).map(|i| i % 2).collect();
    npy::write(&path("y.npy"), &[40], &labels).unwrap();
    npy::write(&path("splits/default/val.npy"), &[2], &[24i64, 25]).unwrap();
    let set = folders.open("new", "default").unwrap();
    assert_eq!(
        (set.info.name.as_str(), set.info.score),
        ("new", Metric::RocAuc)
    );
}

#[test]
fn the_data_sets_files_agree_with_the_facts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xtask/datasets");
    for set in &SETS {
        let path = folder.join(format!("tabred-{}.toml", set.name));
        let text = std::fs::read_to_string(&path).unwrap();
        let archive = format!("preprocessed/{}.tabred", set.name);
        for part in [set.sha256, set.licence, &archive, "irubachev/tabred"] {
            assert!(text.contains(part), "{}: {part}", path.display());
        }
        if let Some(competition) = set.competition {
            assert!(text.contains(competition), "{}", path.display());
        }
    }
}

#[test]
fn the_pages_table_is_the_commands() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/src/models/tabred.md");
    let page = std::fs::read_to_string(page).unwrap();
    let published = ranks::published().unwrap();
    assert!(page.contains(&ranks::table(&ranks::standings(&published).unwrap())));
    let tabm = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/tabm_on_tabred.csv");
    let mut all = published;
    all.extend(ranks::read(&tabm).unwrap());
    assert!(page.contains(&ranks::table(&ranks::standings(&all).unwrap())));
}
