//! What the tests of all crates share: closeness that explains itself, goldens written by reference packages, and what holds for
//! every registered model.

pub mod contract;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use tch::{Kind, Tensor};

/// Copies a folder with all that is in it: of a run folder, what a kill at this moment would leave.
///
/// # Panics
/// When something cannot be read or written.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let to = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_folder(&path, &to);
        } else {
            std::fs::copy(&path, &to).expect("a copy");
        }
    }
}

/// Names of the goldens of a crate, `manifest_dir`, that start with `prefix`, sorted.
///
/// # Panics
/// When there are not `count` of them: a test that runs over none of its goldens would pass.
pub fn goldens(manifest_dir: &str, prefix: &str, count: usize) -> Vec<String> {
    let folder = std::fs::read_dir(format!("{manifest_dir}/tests/goldens")).expect("a folder");
    let names = folder.map(|entry| {
        let name = entry.expect("an entry").file_name();
        name.into_string().expect("a name")
    });
    let mut names: Vec<String> = names
        .filter_map(|name| Some(name.strip_suffix(".safetensors")?.to_owned()))
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    assert_eq!(
        names.len(),
        count,
        "a golden is missing or not listed: {names:?}"
    );
    names
}

/// Asserts that `|actual - expected| <= atol + rtol·|expected|` everywhere; NaN equals only NaN.
///
/// The message names the shape, the worst place and both values there, so that a failure can be understood
/// without running it again.
///
/// # Panics
/// When they are not close.
#[track_caller]
pub fn assert_close(actual: &Tensor, expected: &Tensor, rtol: f64, atol: f64) {
    assert_eq!(
        actual.size(),
        expected.size(),
        "shapes differ: actual, expected"
    );
    if actual.numel() == 0 {
        return;
    }
    let double = |xs: &Tensor| {
        xs.detach()
            .to_device(tch::Device::Cpu)
            .to_kind(Kind::Double)
    };
    let (actual, expected) = (
        double(actual).flatten(0, -1),
        double(expected).flatten(0, -1),
    );
    let both_nan = actual.isnan().logical_and(&expected.isnan());
    let equal = actual.eq_tensor(&expected).logical_or(&both_nan);
    let error = (&actual - &expected).abs().masked_fill(&equal, 0.0);
    let excess = (&error - (expected.abs() * rtol + atol)).nan_to_num(f64::INFINITY, None, None);
    let excess = excess.masked_fill(&equal, f64::NEG_INFINITY);
    let worst = excess.argmax(None, false).int64_value(&[]);
    assert!(
        excess.double_value(&[worst]) <= 0.0,
        "not close at flat index {worst} of {}: actual {:e}, expected {:e}, error {:e} (rtol {rtol:e}, atol {atol:e}; largest error {:e})",
        actual.numel(),
        actual.double_value(&[worst]),
        expected.double_value(&[worst]),
        error.double_value(&[worst]),
        error.max().double_value(&[]),
    );
}

/// [`assert_close`] to `tolerance` of each value and of the largest one.
///
/// # Panics
/// When they are not close.
#[track_caller]
pub fn assert_near(actual: &Tensor, expected: &Tensor, tolerance: f64) {
    let largest = if expected.numel() == 0 {
        0.0
    } else {
        expected.abs().max().double_value(&[])
    };
    assert_close(actual, expected, tolerance, tolerance * largest);
}

/// Asserts that both tensors hold the same bits, shape and kind.
///
/// # Panics
/// When they do not.
#[track_caller]
pub fn assert_bits(actual: &Tensor, expected: &Tensor) {
    assert_eq!(
        actual.size(),
        expected.size(),
        "shapes differ: actual, expected"
    );
    assert_eq!(
        actual.kind(),
        expected.kind(),
        "kinds differ: actual, expected"
    );
    if actual != expected {
        assert_close(actual, expected, 0.0, 0.0);
    }
}

/// A file of inputs, weights and expected results that a reference package wrote (see `python/goldens`).
#[derive(Debug)]
pub struct Golden {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
}

impl Golden {
    /// Opens `<manifest_dir>/tests/goldens/<name>.safetensors`; give `env!("CARGO_MANIFEST_DIR")`.
    ///
    /// # Panics
    /// When the file is absent or not safetensors: a test cannot go on without its golden.
    #[track_caller]
    pub fn open(manifest_dir: &str, name: &str) -> Self {
        let path = Path::new(manifest_dir)
            .join("tests/goldens")
            .join(format!("{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let fail = |e: safetensors::SafeTensorError| -> ! { panic!("{}: {e}", path.display()) };
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap_or_else(|e| fail(e));
        let metadata = header
            .metadata()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect();
        let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| fail(e));
        let tensors = file
            .iter()
            .map(|(name, view)| {
                let kind = match view.dtype() {
                    Dtype::F64 => Kind::Double,
                    Dtype::F32 => Kind::Float,
                    Dtype::BF16 => Kind::BFloat16,
                    Dtype::I64 => Kind::Int64,
                    Dtype::I32 => Kind::Int,
                    Dtype::U8 => Kind::Uint8,
                    Dtype::BOOL => Kind::Bool,
                    other => panic!("{}: `{name}` has dtype {other:?}", path.display()),
                };
                let size: Vec<i64> = view.shape().iter().map(|n| *n as i64).collect();
                (
                    name.to_owned(),
                    Tensor::from_data_size(view.data(), &size, kind),
                )
            })
            .collect();
        Self {
            path,
            tensors,
            metadata,
        }
    }

    /// The file, for error messages of what is fed with it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the golden holds a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor `name`.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn tensor(&self, name: &str) -> Tensor {
        self.tensors
            .get(name)
            .unwrap_or_else(|| panic!("{}: no tensor `{name}`", self.path.display()))
            .shallow_clone()
    }

    /// All tensors whose name starts with `prefix`, by the rest of their names.
    pub fn group(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        self.tensors
            .iter()
            .filter_map(|(name, xs)| {
                Some((name.strip_prefix(prefix)?.to_owned(), xs.shallow_clone()))
            })
            .collect()
    }

    /// The metadata entry `key`.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn meta(&self, key: &str) -> &str {
        self.metadata
            .get(key)
            .unwrap_or_else(|| panic!("{}: no metadata `{key}`", self.path.display()))
    }

    /// The metadata entry `config`, read as a model's config.
    ///
    /// # Panics
    /// When it is absent or does not fit `T`.
    #[track_caller]
    pub fn config<T: serde::de::DeserializeOwned>(&self) -> T {
        serde_json::from_str(self.meta("config"))
            .unwrap_or_else(|e| panic!("{}: config: {e}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_allows_the_tolerance_and_no_more() {
        let a = Tensor::from_slice(&[1.0, 2.0, f64::NAN, f64::INFINITY]);
        let b = Tensor::from_slice(&[1.0, 2.001, f64::NAN, f64::INFINITY]);
        assert_close(&a, &b, 1e-3, 0.0);
        assert!(
            std::panic::catch_unwind(|| assert_close(&a.copy(), &b.copy(), 1e-4, 0.0)).is_err()
        );
    }

    #[test]
    fn nan_is_not_close_to_a_number() {
        let nan = || Tensor::from_slice(&[f32::NAN]);
        assert!(
            std::panic::catch_unwind(|| assert_close(&nan(), &nan().zeros_like(), 1e9, 1e9))
                .is_err()
        );
        assert!(
            std::panic::catch_unwind(|| assert_close(&nan().zeros_like(), &nan(), 1e9, 1e9))
                .is_err()
        );
    }
}
