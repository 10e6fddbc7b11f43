//! Weights in and out, as safetensors.
//!
//! Loading is strict and whole: every key of the file and of the model is compared first, all differences are
//! reported at once, and only then is a value copied. Nothing is renamed, cast or broadcast silently. Saving is
//! atomic and adds a checksum over names, shapes and bytes, which reading verifies: a truncated or altered
//! file is refused by name.

mod mapped;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};
use tch::nn::VarStore;
use tch::{Kind, Tensor};

use crate::registry::Model;
use crate::{Error, Result, fs};

pub use mapped::Mapped;

/// Tensors by name, in the order of the names.
pub type Tensors = BTreeMap<String, Tensor>;

/// Version of what [`save`] writes beside the tensors.
const FORMAT_VERSION: &str = "1";
const CHECKSUM: &str = "content_sha256";

/// What a safetensors file holds.
#[derive(Debug)]
pub struct WeightFile {
    /// Tensors on the CPU, in the file's own kinds.
    pub tensors: Tensors,
    /// Free text by key.
    pub metadata: BTreeMap<String, String>,
}

/// Which keys may be missing from a file, or superfluous in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness<'a> {
    /// None: the file and the model hold the same keys.
    All,
    /// Those that start with one of these prefixes, such as a head of another size. They are not loaded.
    Except(&'a [&'a str]),
}

/// The outcome of comparing a file with a model.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct LoadReport {
    /// Keys whose values were copied.
    pub loaded: Vec<String>,
    /// Keys of the model that the file lacks.
    pub missing: Vec<String>,
    /// Keys of the file that the model lacks.
    pub unexpected: Vec<String>,
    /// Keys of both with other shapes: name, the model's, the file's.
    pub mismatched: Vec<(String, Vec<i64>, Vec<i64>)>,
    /// Keys left out on purpose, by the strictness or the rename table.
    pub skipped: Vec<String>,
    /// Keys whose values were cast: name, the file's kind, the model's.
    pub cast: Vec<(String, Kind, Kind)>,
}

impl LoadReport {
    /// Whether file and model fit.
    pub fn fits(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.mismatched.is_empty()
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        let mut list = |what: &str, names: Vec<String>| {
            if !names.is_empty() {
                parts.push(format!("{} {what}: {}", names.len(), names.join(", ")));
            }
        };
        list("missing from the file", self.missing.clone());
        list("unknown to the model", self.unexpected.clone());
        let shapes = |(name, model, file): &(String, Vec<i64>, Vec<i64>)| {
            format!("{name} (model {model:?}, file {file:?})")
        };
        list(
            "of another shape",
            self.mismatched.iter().map(shapes).collect(),
        );
        if parts.is_empty() {
            return write!(f, "all {} tensors fit", self.loaded.len());
        }
        f.write_str(&parts.join("; "))
    }
}

/// The tensors of a store, in the order of their names, sharing its memory.
pub fn named(vs: &VarStore) -> Tensors {
    vs.variables().into_iter().collect()
}

/// Reads a safetensors file through a memory map and copies its tensors to the CPU.
///
/// # Errors
/// [`Error::Io`] when it cannot be opened; [`Error::Corrupt`] when its header or sizes are wrong, when a dtype
/// has no counterpart in libtorch, or when the checksum that [`save`] wrote does not match.
pub fn read(path: &Path) -> Result<WeightFile> {
    let length = std::fs::metadata(path).map_err(Error::io(path))?.len();
    if length < 8 {
        return Err(Error::corrupt(
            path,
            format!("{length} bytes are too few for safetensors"),
        ));
    }
    let map = densely_torch_ext::map_file(path).map_err(Error::io(path))?;
    let corrupt = |e: safetensors::SafeTensorError| Error::corrupt(path, e.to_string());
    let (_, header) = SafeTensors::read_metadata(&map).map_err(corrupt)?;
    let file = SafeTensors::deserialize(&map).map_err(corrupt)?;
    let metadata: BTreeMap<String, String> = header
        .metadata()
        .as_ref()
        .map(|m| m.clone().into_iter().collect())
        .unwrap_or_default();

    let mut tensors = Tensors::new();
    let mut checksum = Checksum::default();
    let mut names = file.names();
    names.sort_unstable();
    for name in names {
        let view = file.tensor(name).map_err(corrupt)?;
        let kind = kind_of(view.dtype()).ok_or_else(|| {
            Error::corrupt(
                path,
                format!("`{name}` has dtype {:?}, unknown to libtorch", view.dtype()),
            )
        })?;
        let size: Vec<i64> = view.shape().iter().map(|n| *n as i64).collect();
        checksum.add(name, kind, &size, view.data());
        tensors.insert(
            name.to_owned(),
            Tensor::f_from_data_size(view.data(), &size, kind)?,
        );
    }
    if let Some(expected) = metadata.get(CHECKSUM)
        && *expected != checksum.finish()
    {
        return Err(Error::corrupt(
            path,
            "its checksum does not match: the file was altered",
        ));
    }
    Ok(WeightFile { tensors, metadata })
}

/// Saves tensors of any device as safetensors, atomically, with a checksum. The same tensors and metadata give
/// the same bytes.
///
/// # Errors
/// [`Error::Io`] naming the file; [`Error::Unsupported`] for complex or quantised tensors.
pub fn save(path: &Path, tensors: &Tensors, metadata: &BTreeMap<String, String>) -> Result<()> {
    // Wide kinds first, as the format's own writer does, so that every tensor is aligned.
    let mut order: Vec<(&String, Tensor)> = tensors
        .iter()
        .map(|(name, xs)| {
            Ok((
                name,
                xs.f_detach()?
                    .f_to_device(tch::Device::Cpu)?
                    .f_contiguous()?,
            ))
        })
        .collect::<Result<_>>()?;
    order.sort_by_key(|(name, xs)| (std::cmp::Reverse(xs.kind().elt_size_in_bytes()), *name));

    let mut header = serde_json::Map::new();
    let mut offset = 0;
    let mut checksums = BTreeMap::new();
    for (name, xs) in &order {
        let dtype = dtype_name(xs.kind()).ok_or_else(|| Error::Unsupported {
            what: format!("saving `{name}` of kind {:?}", xs.kind()),
            hint: "cast it to a real kind first".to_owned(),
        })?;
        let end = offset + xs.numel() * xs.kind().elt_size_in_bytes();
        let entry = serde_json::json!({ "dtype": dtype, "shape": xs.size(), "data_offsets": [offset, end] });
        header.insert((*name).clone(), entry);
        checksums.insert(*name, xs);
        offset = end;
    }
    let mut checksum = Checksum::default();
    for (name, xs) in checksums {
        checksum.add(name, xs.kind(), &xs.size(), &bytes_of(xs)?);
    }
    let mut metadata = metadata.clone();
    metadata.insert("format_version".to_owned(), FORMAT_VERSION.to_owned());
    metadata.insert(
        "crate_version".to_owned(),
        env!("CARGO_PKG_VERSION").to_owned(),
    );
    metadata.insert(CHECKSUM.to_owned(), checksum.finish());
    header.insert("__metadata__".to_owned(), serde_json::json!(metadata));

    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    fs::write_with(path, |file| {
        let mut put = |bytes: &[u8]| file.write_all(bytes).map_err(Error::io(path));
        put(&(header.len() as u64).to_le_bytes())?;
        put(&header)?;
        order.iter().try_for_each(|(_, xs)| put(&bytes_of(xs)?))
    })
}

/// Loads the file at `path` into the store, renaming its keys by `rename` (`None` leaves a key out).
///
/// # Errors
/// Those of [`read`] and [`load_tensors`].
pub fn load(
    vs: &VarStore,
    path: &Path,
    rename: fn(&str) -> Option<String>,
    strictness: Strictness,
) -> Result<LoadReport> {
    let file = read(path)?;
    let mut skipped = Vec::new();
    let mut tensors = Tensors::new();
    for (name, xs) in file.tensors {
        match rename(&name) {
            Some(renamed) => {
                if tensors.insert(renamed.clone(), xs).is_some() {
                    return Err(Error::corrupt(
                        path,
                        format!("two keys are renamed to `{renamed}`"),
                    ));
                }
            }
            None => skipped.push(name),
        }
    }
    let mut report = load_tensors(vs, path, &tensors, strictness)?;
    report.skipped.append(&mut skipped);
    Ok(report)
}

/// Loads the file at `path` into the store, where it may also use the first name of each pair in `aliases` for the second, or hold a
/// tensor under both.
///
/// # Errors
/// Those of [`read`], [`without_aliases`] and [`load_tensors`].
pub fn load_aliased(
    vs: &VarStore,
    path: &Path,
    aliases: &[(String, String)],
    strictness: Strictness,
) -> Result<LoadReport> {
    let tensors = without_aliases(path, read(path)?.tensors, aliases)?;
    load_tensors(vs, path, &tensors, strictness)
}

/// Loads the file at `path` into the store of `model`, under its own names or its aliases, passing over what it ignores.
///
/// # Errors
/// Those of [`read`], [`without_aliases`] and [`load_tensors`].
pub fn load_model(vs: &VarStore, path: &Path, model: &dyn Model) -> Result<LoadReport> {
    let mut tensors = read(path)?.tensors;
    let mut skipped = model.ignored();
    skipped.retain(|name| tensors.remove(name).is_some());
    let tensors = without_aliases(path, tensors, &model.aliases())?;
    let mut report = load_tensors(vs, path, &tensors, Strictness::All)?;
    report.skipped.append(&mut skipped);
    Ok(report)
}

/// `tensors` with the second name of each pair in `aliases` instead of the first. `path` is for messages.
///
/// # Errors
/// [`Error::Corrupt`] when both are there and hold different values.
pub fn without_aliases(
    path: &Path,
    mut tensors: Tensors,
    aliases: &[(String, String)],
) -> Result<Tensors> {
    for (alias, name) in aliases {
        let Some(xs) = tensors.remove(alias) else {
            continue;
        };
        match tensors.get(name) {
            Some(ours) if *ours != xs => {
                let reason = format!("`{alias}` and `{name}` name one parameter but differ");
                return Err(Error::corrupt(path, reason));
            }
            Some(_) => (),
            None => {
                tensors.insert(name.clone(), xs);
            }
        }
    }
    Ok(tensors)
}

/// The rename table that changes nothing.
pub fn same_name(name: &str) -> Option<String> {
    Some(name.to_owned())
}

/// Copies `tensors` into the store's parameters and buffers of the same names. The store keeps its kinds and
/// device. `path` is for messages.
///
/// # Errors
/// [`Error::Weights`] with the whole report when a key is missing, unexpected or of another shape; the store
/// is then untouched.
pub fn load_tensors(
    vs: &VarStore,
    path: &Path,
    tensors: &Tensors,
    strictness: Strictness,
) -> Result<LoadReport> {
    let excepted = |name: &str| match strictness {
        Strictness::All => false,
        Strictness::Except(prefixes) => prefixes.iter().any(|prefix| name.starts_with(prefix)),
    };
    let mut report = LoadReport::default();
    let model = named(vs);
    for (name, ours) in &model {
        match tensors.get(name) {
            _ if excepted(name) => report.skipped.push(name.clone()),
            None => report.missing.push(name.clone()),
            Some(theirs) if theirs.size() != ours.size() => {
                report
                    .mismatched
                    .push((name.clone(), ours.size(), theirs.size()));
            }
            Some(theirs) => {
                if theirs.kind() != ours.kind() {
                    report.cast.push((name.clone(), theirs.kind(), ours.kind()));
                }
                report.loaded.push(name.clone());
            }
        }
    }
    let unknown = tensors
        .keys()
        .filter(|name| !model.contains_key(*name) && !excepted(name));
    report.unexpected = unknown.cloned().collect();
    if !report.fits() {
        return Err(Error::Weights {
            path: path.to_owned(),
            report: Box::new(report),
        });
    }
    let _no_grad = tch::no_grad_guard();
    for name in &report.loaded {
        model[name].shallow_clone().f_copy_(&tensors[name])?;
    }
    for (name, from, to) in &report.cast {
        tracing::warn!(
            "{}: `{name}` was cast from {from:?} to {to:?}",
            path.display()
        );
    }
    Ok(report)
}

/// SHA-256 over names, kinds, shapes and bytes, fed in the order of the names.
#[derive(Default)]
struct Checksum(Sha256);

impl Checksum {
    fn add(&mut self, name: &str, kind: Kind, size: &[i64], bytes: &[u8]) {
        // Lengths go in too, so that no two different files feed the same stream.
        self.0.update(format!(
            "{}:{name}:{kind:?}:{size:?}:{}:",
            name.len(),
            bytes.len()
        ));
        self.0.update(bytes);
    }

    fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

/// Lower-case hexadecimal digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
            text
        })
}

/// The bytes of a contiguous tensor on the CPU.
fn bytes_of(xs: &Tensor) -> Result<Vec<u8>> {
    let mut bytes = vec![0; xs.numel() * xs.kind().elt_size_in_bytes()];
    if !bytes.is_empty() {
        xs.f_copy_data_u8(&mut bytes, xs.numel())?;
    }
    Ok(bytes)
}

const KINDS: [(Dtype, Kind, &str); 10] = [
    (Dtype::F64, Kind::Double, "F64"),
    (Dtype::F32, Kind::Float, "F32"),
    (Dtype::F16, Kind::Half, "F16"),
    (Dtype::BF16, Kind::BFloat16, "BF16"),
    (Dtype::I64, Kind::Int64, "I64"),
    (Dtype::I32, Kind::Int, "I32"),
    (Dtype::I16, Kind::Int16, "I16"),
    (Dtype::I8, Kind::Int8, "I8"),
    (Dtype::U8, Kind::Uint8, "U8"),
    (Dtype::BOOL, Kind::Bool, "BOOL"),
];

fn kind_of(dtype: Dtype) -> Option<Kind> {
    KINDS.iter().find(|row| row.0 == dtype).map(|row| row.1)
}

fn dtype_name(kind: Kind) -> Option<&'static str> {
    KINDS.iter().find(|row| row.1 == kind).map(|row| row.2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn;
    use proptest::prelude::*;
    use tch::Device;

    fn store() -> VarStore {
        let vs = VarStore::new(Device::Cpu);
        nn::linear(&(vs.root() / "head"), 3, 2);
        nn::batch_norm(&(vs.root() / "norm"), 2, 0.1, 1e-5);
        vs
    }

    fn saved(folder: &tempfile::TempDir) -> Result<std::path::PathBuf> {
        let path = folder.path().join("model.safetensors");
        let metadata = BTreeMap::from([("preset".to_owned(), "tiny".to_owned())]);
        save(&path, &named(&store()), &metadata)?;
        Ok(path)
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    #[test]
    fn saving_is_deterministic_and_reading_gives_the_same_bits() -> Result<()> {
        let folder = folder();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        let vs = store();
        save(
            &a,
            &named(&vs),
            &BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        )?;
        save(
            &b,
            &named(&vs),
            &BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        )?;
        let read_bytes = |path: &Path| std::fs::read(path).map_err(Error::io(path));
        assert_eq!(read_bytes(&a)?, read_bytes(&b)?);
        let file = read(&a)?;
        assert_eq!(file.metadata["k"], "v");
        for (name, xs) in named(&vs) {
            assert_eq!(file.tensors[&name].kind(), xs.kind());
            assert_eq!(file.tensors[&name], xs.detach());
        }
        Ok(())
    }

    #[test]
    fn every_kind_survives_a_round_trip() -> Result<()> {
        let path = folder().keep().join("kinds");
        let xs = Tensor::from_slice(&[0.0f32, 1.0, 3.0]);
        let tensors: Tensors = KINDS
            .iter()
            .map(|(_, kind, name)| ((*name).to_owned(), xs.to_kind(*kind)))
            .collect();
        save(&path, &tensors, &BTreeMap::new())?;
        assert_eq!(read(&path)?.tensors, tensors);
        std::fs::remove_dir_all(path.parent().expect("the folder")).map_err(Error::io(&path))
    }

    #[test]
    fn all_problems_are_reported_at_once_and_nothing_is_loaded() {
        let vs = store();
        let before = named(&vs)["head.weight"].copy();
        let mut tensors = named(&store());
        tensors.remove("norm.weight");
        tensors.insert("extra".to_owned(), Tensor::from(1.0));
        tensors.insert("head.bias".to_owned(), Tensor::from_slice(&[1.0f32]));
        let error = load_tensors(&vs, Path::new("f"), &tensors, Strictness::All)
            .expect_err("three problems")
            .to_string();
        assert_eq!(
            error,
            "f: weights do not fit the model: 1 missing from the file: norm.weight; \
             1 unknown to the model: extra; 1 of another shape: head.bias (model [2], file [1])"
        );
        assert_eq!(named(&vs)["head.weight"], before);
    }

    #[test]
    fn exceptions_and_renames_are_explicit() -> Result<()> {
        let folder = folder();
        let path = saved(&folder)?;
        let vs = VarStore::new(Device::Cpu);
        nn::linear(&(vs.root() / "body" / "head"), 3, 2);
        let rename = |name: &str| {
            name.strip_prefix("head")
                .map(|rest| format!("body.head{rest}"))
        };
        let report = load(&vs, &path, rename, Strictness::All)?;
        assert_eq!(report.loaded, ["body.head.bias", "body.head.weight"]);
        assert_eq!(report.skipped.len(), 5);

        let other = VarStore::new(Device::Cpu);
        nn::linear(&(other.root() / "head"), 3, 7);
        nn::batch_norm(&(other.root() / "norm"), 2, 0.1, 1e-5);
        assert!(load(&other, &path, same_name, Strictness::All).is_err());
        let report = load(&other, &path, same_name, Strictness::Except(&["head."]))?;
        assert_eq!(report.skipped, ["head.bias", "head.weight"]);
        Ok(())
    }

    #[derive(Debug)]
    struct Dialect;

    impl Model for Dialect {
        fn forward_named(&self, _: &Tensors, _: bool) -> Result<Tensors> {
            Ok(Tensors::new())
        }

        fn aliases(&self) -> Vec<(String, String)> {
            vec![("top.weight".to_owned(), "head.weight".to_owned())]
        }

        fn ignored(&self) -> Vec<String> {
            vec!["mask".to_owned(), "absent".to_owned()]
        }
    }

    #[test]
    fn a_model_says_what_else_its_files_hold() -> Result<()> {
        let folder = folder();
        let path = folder.path().join("model.safetensors");
        let mut tensors = named(&store());
        if let Some(weight) = tensors.remove("head.weight") {
            tensors.insert("top.weight".to_owned(), weight);
        }
        tensors.insert("mask".to_owned(), Tensor::from(1.0));
        save(&path, &tensors, &BTreeMap::new())?;
        let vs = store();
        let report = load_model(&vs, &path, &Dialect)?;
        assert_eq!(report.skipped, ["mask"]);
        assert_eq!(named(&vs)["head.weight"], tensors["top.weight"]);
        tensors.insert("other".to_owned(), Tensor::from(1.0));
        save(&path, &tensors, &BTreeMap::new())?;
        let error = load_model(&vs, &path, &Dialect).expect_err("a name of no meaning");
        assert!(error.to_string().contains("other"), "{error}");
        Ok(())
    }

    #[test]
    fn a_cast_is_reported_and_the_store_keeps_its_kind() -> Result<()> {
        let vs = store();
        let tensors: Tensors = named(&store())
            .into_iter()
            .map(|(name, xs)| {
                let float = xs.is_floating_point();
                (name, if float { xs.to_kind(Kind::Half) } else { xs })
            })
            .collect();
        let report = load_tensors(&vs, Path::new("f"), &tensors, Strictness::All)?;
        assert_eq!(report.cast.len(), 6);
        assert!(named(&vs).values().all(|xs| xs.kind() != Kind::Half));
        Ok(())
    }

    #[test]
    fn any_flipped_bit_and_any_truncation_is_refused() -> Result<()> {
        let folder = folder();
        let path = saved(&folder)?;
        let good = std::fs::read(&path).map_err(Error::io(&path))?;
        let damaged = folder.path().join("damaged");
        for byte in 0..good.len() {
            let mut bytes = good.clone();
            bytes[byte] ^= 1 << (byte % 8);
            std::fs::write(&damaged, &bytes).map_err(Error::io(&damaged))?;
            if let Ok(file) = read(&damaged) {
                // Only metadata that the checksum does not cover may differ without being an error.
                let original = read(&path)?;
                assert_eq!(file.tensors, original.tensors, "byte {byte}");
                assert_ne!(file.metadata, original.metadata, "byte {byte}");
            }
        }
        for length in 0..good.len() {
            std::fs::write(&damaged, &good[..length]).map_err(Error::io(&damaged))?;
            let error = read(&damaged).expect_err("truncated");
            assert!(matches!(error, Error::Corrupt { .. }), "{length}: {error}");
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn hostile_headers_are_errors(header in "\\PC{0,200}", length in any::<u64>(), honest: bool) {
            let folder = folder();
            let path = folder.path().join("hostile");
            let length = if honest { header.len() as u64 } else { length };
            let mut bytes = length.to_le_bytes().to_vec();
            bytes.extend(header.as_bytes());
            std::fs::write(&path, bytes).expect("written");
            if let Ok(file) = read(&path) {
                prop_assert!(file.tensors.values().all(|xs| xs.numel() == 0));
            }
        }
    }

    #[test]
    fn headers_that_claim_huge_or_overlapping_tensors_are_errors() -> Result<()> {
        let folder = folder();
        let path = folder.path().join("hostile");
        for header in [
            r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}"#,
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}"#,
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
            r#"{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}"#,
        ] {
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.as_bytes());
            bytes.extend([0; 8]);
            std::fs::write(&path, bytes).map_err(Error::io(&path))?;
            let error = read(&path).expect_err(header);
            assert!(matches!(error, Error::Corrupt { .. }), "{header}: {error}");
        }
        Ok(())
    }
}
