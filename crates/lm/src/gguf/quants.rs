//! The layouts of GGUF's tensors, and the values of quantised blocks.
//!
//! A block holds 32 or 256 values along the fastest axis: a scale (and a least value) in half precision, whole numbers of few bits, and in the
//! larger blocks scales of sixteen or thirty-two values each. All numbers are little endian.

use half::f16;
use tch::Kind;

/// How a type lies in the file.
pub(super) struct Layout {
    pub(super) name: &'static str,
    /// Values of a block.
    pub(super) values: usize,
    /// Bytes of a block.
    pub(super) bytes: usize,
    /// The kind of a type that is not quantised.
    pub(super) plain: Option<Kind>,
    /// Writes the values of a block.
    block: fn(&[u8], &mut [f32]),
}

/// Plain types are copied, never unpacked.
fn none(_: &[u8], _: &mut [f32]) {}

const fn plain(name: &'static str, bytes: usize, kind: Kind) -> Layout {
    Layout {
        name,
        values: 1,
        bytes,
        plain: Some(kind),
        block: none,
    }
}

const fn quantised(
    name: &'static str,
    values: usize,
    bytes: usize,
    block: fn(&[u8], &mut [f32]),
) -> Layout {
    Layout {
        name,
        values,
        bytes,
        plain: None,
        block,
    }
}

const F32: Layout = plain("F32", 4, Kind::Float);
const F16: Layout = plain("F16", 2, Kind::Half);
const BF16: Layout = plain("BF16", 2, Kind::BFloat16);
const F64: Layout = plain("F64", 8, Kind::Double);
const Q4_0: Layout = quantised("Q4_0", 32, 18, q4_0);
const Q4_1: Layout = quantised("Q4_1", 32, 20, q4_1);
const Q5_0: Layout = quantised("Q5_0", 32, 22, q5_0);
const Q5_1: Layout = quantised("Q5_1", 32, 24, q5_1);
const Q8_0: Layout = quantised("Q8_0", 32, 34, q8_0);
const Q2_K: Layout = quantised("Q2_K", 256, 84, q2_k);
const Q3_K: Layout = quantised("Q3_K", 256, 110, q3_k);
const Q4_K: Layout = quantised("Q4_K", 256, 144, q4_k);
const Q5_K: Layout = quantised("Q5_K", 256, 176, q5_k);
const Q6_K: Layout = quantised("Q6_K", 256, 210, q6_k);
const Q8_K: Layout = quantised("Q8_K", 256, 292, q8_k);

/// Types that are read, by their numbers.
const LAYOUTS: [(u32, &Layout); 15] = [
    (0, &F32),
    (1, &F16),
    (2, &Q4_0),
    (3, &Q4_1),
    (6, &Q5_0),
    (7, &Q5_1),
    (8, &Q8_0),
    (10, &Q2_K),
    (11, &Q3_K),
    (12, &Q4_K),
    (13, &Q5_K),
    (14, &Q6_K),
    (15, &Q8_K),
    (28, &F64),
    (30, &BF16),
];

/// Types that are not, for messages.
const OTHERS: [(u32, &str); 22] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

pub(super) fn type_name(id: u32) -> String {
    let read = LAYOUTS
        .iter()
        .map(|(number, layout)| (*number, layout.name));
    let mut all = read.chain(OTHERS);
    all.find(|(number, _)| *number == id)
        .map_or_else(|| format!("number {id}"), |(_, name)| name.to_owned())
}

/// Names of all types that are read.
pub(super) fn readable() -> String {
    let names: Vec<&str> = LAYOUTS.iter().map(|(_, layout)| layout.name).collect();
    names.join(", ")
}

impl Layout {
    pub(super) fn of(id: u32) -> Option<&'static Self> {
        LAYOUTS
            .iter()
            .find(|(number, _)| *number == id)
            .map(|(_, layout)| *layout)
    }

    /// The values of `bytes`, which are whole blocks.
    pub(super) fn dequantize(&self, bytes: &[u8]) -> Vec<f32> {
        let mut values = vec![0.0; bytes.len() / self.bytes * self.values];
        let blocks = bytes.chunks_exact(self.bytes);
        for (block, values) in blocks.zip(values.chunks_exact_mut(self.values)) {
            (self.block)(block, values);
        }
        values
    }
}

/// The number in half precision at byte `at`.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The low and the high four bits of each byte of `nibbles`: values i and i + 16.
fn nibbles(nibbles: &[u8], values: &mut [f32], value: impl Fn(usize, u8) -> f32) {
    let (low, high) = values.split_at_mut(16);
    for (i, byte) in nibbles.iter().enumerate() {
        low[i] = value(i, byte & 15);
        high[i] = value(i + 16, byte >> 4);
    }
}

/// f16 d, 16 bytes: d · (q - 8).
fn q4_0(block: &[u8], values: &mut [f32]) {
    let d = half(block, 0);
    nibbles(&block[2..18], values, |_, q| d * (f32::from(q) - 8.0));
}

/// f16 d, f16 m, 16 bytes: d · q + m.
fn q4_1(block: &[u8], values: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    nibbles(&block[4..20], values, |_, q| d * f32::from(q) + m);
}

/// The fifth bits of 32 values, lowest first.
fn fifth_bits(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Four bits and the fifth.
fn five(q: u8, bits: u32, i: usize) -> f32 {
    f32::from(q | ((((bits >> i) & 1) as u8) << 4))
}

/// f16 d, 4 bytes of fifth bits, 16 bytes: d · (q - 16).
fn q5_0(block: &[u8], values: &mut [f32]) {
    let (d, bits) = (half(block, 0), fifth_bits(&block[2..6]));
    nibbles(&block[6..22], values, |i, q| d * (five(q, bits, i) - 16.0));
}

/// f16 d, f16 m, 4 bytes of fifth bits, 16 bytes: d · q + m.
fn q5_1(block: &[u8], values: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let bits = fifth_bits(&block[4..8]);
    nibbles(&block[8..24], values, |i, q| d * five(q, bits, i) + m);
}

/// f16 d, 32 signed bytes: d · q.
fn q8_0(block: &[u8], values: &mut [f32]) {
    let d = half(block, 0);
    for (value, q) in values.iter_mut().zip(&block[2..34]) {
        *value = d * f32::from(q.cast_signed());
    }
}

/// 16 bytes of scale and least value (four bits each), 64 bytes of two bits, f16 d, f16 least d: d · s · q - least d · m.
fn q2_k(block: &[u8], values: &mut [f32]) {
    let (d, least) = (half(block, 80), half(block, 82));
    let groups = values.chunks_exact_mut(16);
    for (g, (group, scale)) in groups.zip(&block[..16]).enumerate() {
        // Eight groups share 32 bytes: two side by side for each pair of bits.
        let (half_block, within) = (g / 8, g % 8);
        let start = 16 + 32 * half_block + 16 * (within % 2);
        let shift = 2 * (within / 2);
        let (d, m) = (d * f32::from(scale & 15), least * f32::from(scale >> 4));
        for (value, q) in group.iter_mut().zip(&block[start..start + 16]) {
            *value = d * f32::from((q >> shift) & 3) - m;
        }
    }
}

/// 32 bytes of third bits, 64 bytes of two bits, 12 bytes of scales (six bits each), f16 d: d · (s - 32) · (q - 4 where the third bit is 0).
fn q3_k(block: &[u8], values: &mut [f32]) {
    let d = half(block, 108);
    let (thirds, twos, packed) = (&block[..32], &block[32..96], &block[96..108]);
    for (g, group) in values.chunks_exact_mut(16).enumerate() {
        let (half_block, within) = (g / 8, g % 8);
        let column = 16 * (within % 2);
        let shift = 2 * (within / 2);
        let bit = 4 * half_block + within / 2;
        // Four low bits of the scales lie in the first eight bytes, the two high ones in the last four.
        let low = if g < 8 {
            packed[g] & 15
        } else {
            packed[g - 8] >> 4
        };
        let high = (packed[8 + g % 4] >> (2 * (g / 4))) & 3;
        let scale = d * (f32::from(low | (high << 4)) - 32.0);
        for (l, value) in group.iter_mut().enumerate() {
            let q = (twos[32 * half_block + column + l] >> shift) & 3;
            let third = (thirds[column + l] >> bit) & 1;
            *value = scale * (f32::from(q) - if third == 1 { 0.0 } else { 4.0 });
        }
    }
}

/// Scale and least value, six bits each, of group `g` of eight in 12 bytes.
fn scale_and_least(packed: &[u8], g: usize) -> (f32, f32) {
    let (scale, least) = if g < 4 {
        (packed[g] & 63, packed[g + 4] & 63)
    } else {
        (
            (packed[g + 4] & 15) | ((packed[g - 4] >> 6) << 4),
            (packed[g + 4] >> 4) | ((packed[g] >> 6) << 4),
        )
    };
    (f32::from(scale), f32::from(least))
}

/// f16 d, f16 least d, 12 bytes of scales and least values, 128 bytes of four bits: d · s · q - least d · m.
fn q4_k(block: &[u8], values: &mut [f32]) {
    let (d, least) = (half(block, 0), half(block, 2));
    for (g, group) in values.chunks_exact_mut(32).enumerate() {
        let (scale, m) = scale_and_least(&block[4..16], g);
        let (scale, m) = (d * scale, least * m);
        let bytes = &block[16 + 32 * (g / 2)..48 + 32 * (g / 2)];
        let shift = 4 * (g % 2);
        for (value, q) in group.iter_mut().zip(bytes) {
            *value = scale * f32::from((q >> shift) & 15) - m;
        }
    }
}

/// As [`q4_k`] with 32 bytes of fifth bits before the four bits.
fn q5_k(block: &[u8], values: &mut [f32]) {
    let (d, least) = (half(block, 0), half(block, 2));
    let fifths = &block[16..48];
    for (g, group) in values.chunks_exact_mut(32).enumerate() {
        let (scale, m) = scale_and_least(&block[4..16], g);
        let (scale, m) = (d * scale, least * m);
        let bytes = &block[48 + 32 * (g / 2)..80 + 32 * (g / 2)];
        let shift = 4 * (g % 2);
        for ((value, q), fifth) in group.iter_mut().zip(bytes).zip(fifths) {
            let q = ((q >> shift) & 15) | (((fifth >> g) & 1) << 4);
            *value = scale * f32::from(q) - m;
        }
    }
}

/// 128 bytes of four low bits, 64 bytes of two high bits, 16 signed bytes of scales, f16 d: d · s · (q - 32).
fn q6_k(block: &[u8], values: &mut [f32]) {
    let d = half(block, 208);
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    for (g, group) in values.chunks_exact_mut(32).enumerate() {
        // Four groups of 32 share 64 bytes of low bits and 32 of high ones.
        let (half_block, within) = (g / 4, g % 4);
        let lows = &low[64 * half_block + 32 * (within % 2)..][..32];
        let highs = &high[32 * half_block..][..32];
        for (l, value) in group.iter_mut().enumerate() {
            let four = (lows[l] >> (4 * (within / 2))) & 15;
            let two = (highs[l] >> (2 * within)) & 3;
            let scale = scales[2 * g + l / 16].cast_signed();
            *value = d * f32::from(scale) * (f32::from(four | (two << 4)) - 32.0);
        }
    }
}

/// f32 d, 256 signed bytes, sums of sixteen for other purposes: d · q.
fn q8_k(block: &[u8], values: &mut [f32]) {
    let d = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    for (value, q) in values.iter_mut().zip(&block[4..260]) {
        *value = d * f32::from(q.cast_signed());
    }
}
