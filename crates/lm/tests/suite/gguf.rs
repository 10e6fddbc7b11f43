//! GGUF files that a small writer here makes: every kind of value and of tensor, and damage.

mod hostile;
pub(crate) mod models;

use std::path::{Path, PathBuf};

use densely_core::{Error, Result};
use densely_lm::gguf::{Gguf, Value};
use densely_lm::open;
use densely_testkit::assert_bits;
use tch::{Device, Kind, Tensor};

use crate::tiny;
use crate::tokenizer::{END, SMALL, small};

/// Numbers of types of metadata values.
const U32: u32 = 4;
const F32: u32 = 6;
const FLAG: u32 = 7;
const TEXT: u32 = 8;
const LIST: u32 = 9;

/// Writes a file of version 3.
#[derive(Default, Clone)]
struct Writer {
    metadata: Vec<u8>,
    values: u64,
    /// Name, sizes with the fastest first, type, bytes.
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

fn text_bytes(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Writer {
    fn put(&mut self, key: &str, kind: u32, bytes: &[u8]) {
        self.metadata.extend(text_bytes(key));
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(bytes);
        self.values += 1;
    }

    fn u32(&mut self, key: &str, value: u32) {
        self.put(key, U32, &value.to_le_bytes());
    }

    fn f32(&mut self, key: &str, value: f32) {
        self.put(key, F32, &value.to_le_bytes());
    }

    fn flag(&mut self, key: &str, value: bool) {
        self.put(key, FLAG, &[u8::from(value)]);
    }

    fn text(&mut self, key: &str, value: &str) {
        self.put(key, TEXT, &text_bytes(value));
    }

    fn list(&mut self, key: &str, kind: u32, items: &[Vec<u8>]) {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend((items.len() as u64).to_le_bytes());
        bytes.extend(items.concat());
        self.put(key, LIST, &bytes);
    }

    fn texts(&mut self, key: &str, items: &[String]) {
        let items: Vec<Vec<u8>> = items.iter().map(|item| text_bytes(item)).collect();
        self.list(key, TEXT, &items);
    }

    fn tensor(&mut self, name: &str, size: &[u64], kind: u32, bytes: Vec<u8>) {
        self.tensors
            .push((name.to_owned(), size.to_vec(), kind, bytes));
    }

    /// A tensor of f32 in row-major order.
    fn floats(&mut self, name: &str, xs: &Tensor) -> Result<()> {
        let values: Vec<f32> = Vec::try_from(&xs.f_contiguous()?.f_flatten(0, -1)?)?;
        let size: Vec<u64> = xs.size().iter().rev().map(|n| *n as u64).collect();
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.tensor(name, &size, 0, bytes);
        Ok(())
    }

    fn bytes(&self) -> Vec<u8> {
        let mut all = b"GGUF".to_vec();
        all.extend(3u32.to_le_bytes());
        all.extend((self.tensors.len() as u64).to_le_bytes());
        all.extend(self.values.to_le_bytes());
        all.extend(&self.metadata);
        let mut offset = 0u64;
        for (name, size, kind, bytes) in &self.tensors {
            all.extend(text_bytes(name));
            all.extend((size.len() as u32).to_le_bytes());
            for n in size {
                all.extend(n.to_le_bytes());
            }
            all.extend(kind.to_le_bytes());
            all.extend(offset.to_le_bytes());
            offset += (bytes.len() as u64).next_multiple_of(32);
        }
        for (_, _, _, bytes) in &self.tensors {
            all.resize(all.len().next_multiple_of(32), 0);
            all.extend(bytes);
        }
        all
    }

    /// The tokeniser of [`small`].
    fn tokenizer(&mut self) {
        let (tokens, merges) = small();
        self.text("tokenizer.ggml.model", "gpt2");
        self.text("tokenizer.ggml.pre", "smollm");
        let types: Vec<Vec<u8>> = (0..SMALL)
            .map(|id| if id == END { 3i32 } else { 1 }.to_le_bytes().to_vec())
            .collect();
        self.list("tokenizer.ggml.token_type", 5, &types);
        self.texts("tokenizer.ggml.tokens", &tokens);
        self.texts("tokenizer.ggml.merges", &merges);
        self.u32("tokenizer.ggml.bos_token_id", END as u32);
        self.u32("tokenizer.ggml.eos_token_id", END as u32);
    }
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Result<Self> {
        Ok(Self {
            folder: tiny::folder()?,
        })
    }

    fn write(&self, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.folder.path().join("model.gguf");
        std::fs::write(&path, bytes).map_err(Error::io(&path))?;
        Ok(path)
    }

    fn open(&self, bytes: &[u8]) -> Result<Gguf> {
        Gguf::open(&self.write(bytes)?)
    }
}

#[test]
fn values_of_every_type_are_read() -> Result<()> {
    let mut writer = Writer::default();
    writer.put("u8", 0, &[200]);
    writer.put("i8", 1, &(-3i8).to_le_bytes());
    writer.put("u16", 2, &60_000u16.to_le_bytes());
    writer.put("i16", 3, &(-300i16).to_le_bytes());
    writer.u32("u32", 4_000_000_000);
    writer.put("i32", 5, &(-5i32).to_le_bytes());
    writer.f32("f32", 1e-5);
    writer.flag("flag", true);
    writer.text("text", "Grüße");
    writer.put("u64", 10, &u64::MAX.to_le_bytes());
    writer.put("i64", 11, &i64::MIN.to_le_bytes());
    writer.put("f64", 12, &0.1f64.to_le_bytes());
    writer.texts("texts", &["a".to_owned(), String::new(), "ü".to_owned()]);
    writer.list(
        "numbers",
        3,
        &[7i16.to_le_bytes().to_vec(), (-7i16).to_le_bytes().to_vec()],
    );
    let inner = [
        5u32.to_le_bytes().to_vec(),
        1u64.to_le_bytes().to_vec(),
        9i32.to_le_bytes().to_vec(),
    ]
    .concat();
    writer.list("lists", LIST, &[inner.clone(), inner]);
    let place = Place::new()?;
    let file = place.open(&writer.bytes())?;
    assert_eq!(file.version(), 3);
    let expected = [
        ("f32", Value::Number(1e-5)),
        ("f64", Value::Number(0.1)),
        ("flag", Value::Flag(true)),
        ("i16", Value::Signed(-300)),
        ("i32", Value::Signed(-5)),
        ("i64", Value::Signed(i64::MIN)),
        ("i8", Value::Signed(-3)),
        ("text", Value::Text("Grüße".to_owned())),
        ("u16", Value::Unsigned(60_000)),
        ("u32", Value::Unsigned(4_000_000_000)),
        ("u64", Value::Unsigned(u64::MAX)),
        ("u8", Value::Unsigned(200)),
    ];
    for (key, value) in expected {
        assert_eq!(file.metadata()[key], value, "{key}");
    }
    assert_eq!(
        file.texts("texts")?,
        Some(vec!["a".to_owned(), String::new(), "ü".to_owned()])
    );
    assert_eq!(file.integers("numbers")?, Some(vec![7, -7]));
    assert_eq!(file.numbers("numbers")?, Some(vec![7.0, -7.0]));
    assert_eq!(file.integer("i16")?, Some(-300));
    assert_eq!(file.number("u8")?, Some(200.0));
    assert_eq!(file.text("absent")?, None);
    for error in [
        file.text("u8").expect_err("a number"),
        file.integer("text").expect_err("text"),
        file.integer("u64").expect_err("too large"),
        file.flag("u8").expect_err("a number"),
        file.texts("numbers").expect_err("numbers"),
        file.integers("lists").expect_err("lists"),
        file.integers("text").expect_err("text"),
    ] {
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    }
    Ok(())
}

/// A block of pseudo-random bytes that start from `seed`.
fn block(seed: u32, bytes: usize) -> Vec<u8> {
    let mut state = seed;
    (0..bytes)
        .map(|_| {
            state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345) & 0x7fff_ffff;
            (state >> 16) as u8
        })
        .collect()
}

/// Number and name of the type, bytes of a block, where its scales lie (0.5, then 0.25, in half precision), some values by their places,
/// the sum of all values, and the sum of each times its place from 1. The `gguf` package of Python gives these values.
type Quantised = (
    u32,
    &'static str,
    usize,
    &'static [usize],
    &'static [(usize, f32)],
    f64,
    f64,
);

const QUANTISED: [Quantised; 10] = [
    (
        2,
        "Q4_0",
        18,
        &[0],
        &[
            (0, 3.5),
            (1, -3.0),
            (15, -1.0),
            (16, 3.5),
            (17, -0.5),
            (31, -4.0),
        ],
        -4.0,
        -186.0,
    ),
    (
        3,
        "Q4_1",
        20,
        &[0, 2],
        &[
            (0, 7.25),
            (1, 2.25),
            (15, 0.25),
            (16, 4.25),
            (17, 5.75),
            (31, 5.25),
        ],
        126.0,
        1887.5,
    ),
    (
        6,
        "Q5_0",
        22,
        &[0],
        &[
            (0, -1.5),
            (1, 0.5),
            (15, 0.0),
            (16, -1.0),
            (17, 2.5),
            (31, -2.5),
        ],
        -9.5,
        -400.0,
    ),
    (
        7,
        "Q5_1",
        24,
        &[0, 2],
        &[
            (0, 8.75),
            (1, 8.75),
            (15, 5.25),
            (16, 1.75),
            (17, 13.25),
            (31, 6.75),
        ],
        223.5,
        3775.5,
    ),
    (
        8,
        "Q8_0",
        34,
        &[0],
        &[
            (0, -7.0),
            (1, -51.5),
            (15, -41.5),
            (16, -54.5),
            (17, 2.5),
            (31, 52.0),
        ],
        38.0,
        3413.0,
    ),
    (
        10,
        "Q2_K",
        84,
        &[80, 82],
        &[
            (0, 4.75),
            (17, -0.75),
            (40, -3.5),
            (63, -2.5),
            (131, 22.25),
            (255, -2.5),
        ],
        881.5,
        88_483.5,
    ),
    (
        11,
        "Q3_K",
        110,
        &[108],
        &[
            (0, -18.0),
            (17, -10.5),
            (40, 14.0),
            (63, 7.0),
            (131, 33.0),
            (255, 30.0),
        ],
        409.5,
        34_752.0,
    ),
    (
        12,
        "Q4_K",
        144,
        &[0, 2],
        &[
            (0, 422.75),
            (17, -4.75),
            (40, 243.5),
            (63, 218.0),
            (131, 0.5),
            (255, 80.0),
        ],
        28_567.0,
        2_938_035.5,
    ),
    (
        13,
        "Q5_K",
        176,
        &[0, 2],
        &[
            (0, 347.75),
            (17, 199.25),
            (40, 109.75),
            (63, 94.75),
            (131, 318.5),
            (255, 142.25),
        ],
        57_121.0,
        7_514_353.0,
    ),
    (
        14,
        "Q6_K",
        210,
        &[208],
        &[
            (0, -1512.0),
            (17, 710.0),
            (40, 88.0),
            (63, 638.0),
            (131, -490.5),
            (255, 1206.5),
        ],
        -1893.0,
        -77_377.0,
    ),
];

#[test]
fn quantised_blocks_have_their_values() -> Result<()> {
    let place = Place::new()?;
    for (kind, name, bytes, scales, some, sum, weighted) in QUANTISED {
        let mut block = block(kind, bytes);
        for (at, half) in scales.iter().zip([0x3800u16, 0x3400]) {
            block[*at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
        let values = if bytes < 84 { 32 } else { 256 };
        let mut writer = Writer::default();
        // Twice, so that the second row shows that blocks follow each other.
        writer.tensor("x", &[values, 2], kind, block.repeat(2));
        let file = place.open(&writer.bytes())?;
        assert_eq!(file.types(), format!("1 {name}"));
        let xs = file.tensor("x")?;
        assert_eq!(xs.size(), [2, values as i64]);
        for row in 0..2 {
            let row: Vec<f32> = Vec::try_from(&xs.get(row))?;
            for (at, value) in some {
                assert!((row[*at] - value).abs() < 1e-6, "{name} {at}: {}", row[*at]);
            }
            let all: f64 = row.iter().map(|x| f64::from(*x)).sum();
            let places = row
                .iter()
                .zip(1..)
                .map(|(x, at)| f64::from(*x) * f64::from(at));
            let all_weighted: f64 = places.sum();
            assert!(
                (all - sum).abs() < 1e-6 && (all_weighted - weighted).abs() < 1e-6,
                "{name}: {all} {all_weighted}"
            );
        }
    }
    Ok(())
}

#[test]
fn blocks_by_hand() -> Result<()> {
    let place = Place::new()?;
    let mut writer = Writer::default();
    // Scale 2 and least value -1 (half precision 0x4000, 0xbc00): low four bits first, then the high ones.
    let mut q4_1 = vec![0x00, 0x40, 0x00, 0xbc];
    q4_1.extend((0..16).map(|i| i | (15 - i) << 4));
    writer.tensor("q4_1", &[32], 3, q4_1);
    // Scale 1/4 (0x3400): signed bytes.
    let mut q8_0 = vec![0x00, 0x34];
    q8_0.extend((0..32).map(|i: i8| (i - 16) as u8));
    writer.tensor("q8_0", &[32], 8, q8_0);
    // Scale 3 as f32, 256 signed bytes, sums that are not looked at.
    let mut q8_k = 3f32.to_le_bytes().to_vec();
    q8_k.extend((0..=255u8).map(|i| i.wrapping_sub(128)));
    q8_k.extend([0xff; 32]);
    writer.tensor("q8_k", &[256], 15, q8_k);
    writer.tensor("f16", &[2, 1], 1, vec![0x00, 0x3c, 0x00, 0xc0]);
    writer.tensor("bf16", &[1, 2], 30, vec![0x80, 0x3f, 0x00, 0xc0]);
    writer.tensor("f64", &[1], 28, 0.1f64.to_le_bytes().to_vec());
    let file = place.open(&writer.bytes())?;
    let floats =
        |values: &mut dyn Iterator<Item = f32>| Tensor::from_slice(&values.collect::<Vec<f32>>());
    let low = (0..16).map(|i| 2.0 * i as f32 - 1.0);
    let high = (0..16).map(|i| 2.0 * (15 - i) as f32 - 1.0);
    assert_bits(&file.tensor("q4_1")?, &floats(&mut low.chain(high)));
    assert_bits(
        &file.tensor("q8_0")?,
        &floats(&mut (0..32).map(|i| (i - 16) as f32 / 4.0)),
    );
    assert_bits(
        &file.tensor("q8_k")?,
        &floats(&mut (0..256).map(|i| 3.0 * (i - 128) as f32)),
    );
    let pair = Tensor::from_slice(&[1f32, -2.0]);
    assert_bits(
        &file.tensor("f16")?,
        &pair.reshape([1, 2]).to_kind(Kind::Half),
    );
    assert_bits(
        &file.tensor("bf16")?,
        &pair.reshape([2, 1]).to_kind(Kind::BFloat16),
    );
    assert_bits(&file.tensor("f64")?, &Tensor::from_slice(&[0.1f64]));
    assert_eq!(file.kind("f16"), Some(Kind::Half));
    let error = file.tensor("absent").expect_err("absent").to_string();
    assert!(error.contains("no tensor `absent`"), "{error}");
    Ok(())
}

#[test]
fn types_that_are_not_read_are_named() -> Result<()> {
    let place = Place::new()?;
    for (kind, name) in [
        (17, "IQ2_XS"),
        (26, "I32"),
        (39, "MXFP4"),
        (4711, "number 4711"),
    ] {
        let mut writer = Writer::default();
        writer.tensor("x", &[256], kind, vec![0; 74]);
        let error = place.open(&writer.bytes())?.tensor("x").expect_err(name);
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        let message = error.to_string();
        assert!(
            message.contains(name) && message.contains("Q4_K"),
            "{message}"
        );
    }
    Ok(())
}

/// Opens a file whole, with all that it holds.
fn use_all(path: &Path) -> Result<()> {
    let file = Gguf::open(path)?;
    for key in file.metadata().keys() {
        let _ = (file.texts(key), file.integers(key), file.numbers(key));
    }
    for name in file.tensors().keys() {
        let _ = file.tensor(name)?;
    }
    open(path, Device::Cpu, Kind::Float)?;
    Ok(())
}

#[test]
fn truncated_and_altered_files_are_errors() -> Result<()> {
    let place = Place::new()?;
    let mut writer = Writer::default();
    writer.text("general.architecture", "llama");
    writer.u32("llama.block_count", 1);
    writer.texts("tokenizer.ggml.tokens", &["a".to_owned(), "b".to_owned()]);
    writer.tensor("token_embd.weight", &[32, 2], 8, block(1, 68));
    writer.tensor("output_norm.weight", &[32], 0, block(2, 128));
    let good = writer.bytes();
    let _ = place.open(&good)?.tensor("output_norm.weight")?;
    for length in 0..good.len() {
        let error = place.open(&good[..length]).expect_err("truncated");
        assert!(
            matches!(error, Error::Corrupt { .. } | Error::Io { .. }),
            "{length}: {error}"
        );
    }
    for byte in 0..good.len() {
        for bit in [0, 3, 7] {
            let mut damaged = good.clone();
            damaged[byte] ^= 1 << bit;
            // The model lacks most of its tensors: no such file opens, and none may end the program.
            let path = place.write(&damaged)?;
            assert!(use_all(&path).is_err(), "{byte} {bit}");
        }
    }
    Ok(())
}

#[test]
fn lengths_beyond_the_file_are_errors() -> Result<()> {
    let place = Place::new()?;
    let mut small = Writer::default();
    small.u32("a", 1);
    let good = small.bytes();
    let with = |at: usize, bytes: &[u8]| {
        let mut all = good.clone();
        all[at..at + bytes.len()].copy_from_slice(bytes);
        all
    };
    let huge = u64::MAX.to_le_bytes();
    let mut list = Writer::default();
    let claim = [8u32.to_le_bytes().as_slice(), &(1u64 << 40).to_le_bytes()].concat();
    list.put("tokens", LIST, &claim);
    let mut deep = Writer::default();
    let level = [9u32.to_le_bytes().as_slice(), &1u64.to_le_bytes()].concat();
    deep.put("deep", LIST, &level.repeat(100));
    let tensor = |size: &[u64], kind: u32, bytes: usize| {
        let mut writer = Writer::default();
        writer.tensor("x", size, kind, vec![0; bytes]);
        writer.bytes()
    };
    let mut twice = Writer::default();
    twice.u32("a", 1);
    twice.u32("a", 2);
    let mut same = Writer::default();
    same.tensor("x", &[1], 0, vec![0; 4]);
    same.tensor("x", &[1], 0, vec![0; 4]);
    let mut aligned = Writer::default();
    aligned.u32("general.alignment", 12);
    let mut flag = Writer::default();
    flag.put("flag", FLAG, &[2]);
    let mut binary = Writer::default();
    binary.put("text", TEXT, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]);
    for (bytes, part) in [
        (with(0, b"GGML"), "does not start with"),
        (with(4, &1u32.to_le_bytes()), "version 1"),
        (with(4, &3u32.to_be_bytes()), "big-endian"),
        (with(4, &9u32.to_le_bytes()), "version 9"),
        (with(8, &huge), "tensors follow"),
        (with(16, &huge), "metadata values follow"),
        (with(24, &huge), "longer than"),
        (with(33, &77u32.to_le_bytes()), "is 77"),
        (list.bytes(), "1099511627776"),
        (deep.bytes(), "lists within lists"),
        (tensor(&[], 0, 0), "0 axes"),
        (tensor(&[1; 5], 0, 4), "5 axes"),
        (tensor(&[0, 4], 0, 4), "impossible sizes"),
        (tensor(&[1 << 40, 1 << 40], 0, 4), "impossible sizes"),
        (tensor(&[1 << 40], 0, 4), "ends within the tensor `x`"),
        (tensor(&[31, 32], 2, 18), "rows of 31"),
        (twice.bytes(), "`a` twice"),
        (same.bytes(), "tensor `x` twice"),
        (aligned.bytes(), "general.alignment"),
        (flag.bytes(), "neither 0 nor 1"),
        (binary.bytes(), "not UTF-8"),
    ] {
        let error = place.open(&bytes).expect_err(part).to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    Ok(())
}
