//! A safetensors file that stays on the disk: its tensors are read one by one.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use densely_torch_ext::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::TensorInfo;
use tch::{Kind, Tensor};

use super::{CHECKSUM, Checksum, kind_of};
use crate::{Error, Result};

/// A safetensors file of which only the header was read. Models of many gigabytes are filled from it tensor by tensor, so that no
/// second copy of them is ever in memory.
#[derive(Debug)]
pub struct Mapped {
    path: PathBuf,
    map: Mmap,
    places: BTreeMap<String, Place>,
}

#[derive(Debug)]
struct Place {
    kind: Kind,
    size: Vec<i64>,
    bytes: Range<usize>,
}

impl Mapped {
    /// Maps the file at `path` and checks its header and, where [`save`](super::save) wrote one, its checksum.
    ///
    /// # Errors
    /// Those of [`read`](super::read).
    pub fn open(path: &Path) -> Result<Self> {
        let length = std::fs::metadata(path).map_err(Error::io(path))?.len();
        if length < 8 {
            let reason = format!("{length} bytes are too few for safetensors");
            return Err(Error::corrupt(path, reason));
        }
        let map = densely_torch_ext::map_file(path).map_err(Error::io(path))?;
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|e| Error::corrupt(path, e.to_string()))?;
        let start = 8 + header;
        let infos: BTreeMap<String, &TensorInfo> = metadata.tensors().into_iter().collect();
        let mut places = BTreeMap::new();
        for (name, info) in infos {
            let kind = kind_of(info.dtype).ok_or_else(|| {
                let reason = format!("`{name}` has dtype {:?}, unknown to libtorch", info.dtype);
                Error::corrupt(path, reason)
            })?;
            let place = Place {
                kind,
                size: info.shape.iter().map(|n| *n as i64).collect(),
                bytes: start + info.data_offsets.0..start + info.data_offsets.1,
            };
            places.insert(name, place);
        }
        let expected = metadata
            .metadata()
            .as_ref()
            .and_then(|m| m.get(CHECKSUM).cloned());
        let file = Self {
            path: path.to_owned(),
            map,
            places,
        };
        if let Some(expected) = expected {
            file.verify(&expected)?;
        }
        Ok(file)
    }

    fn verify(&self, expected: &str) -> Result<()> {
        let mut checksum = Checksum::default();
        for (name, place) in &self.places {
            checksum.add(name, place.kind, &place.size, self.bytes(place)?);
        }
        if checksum.finish() == expected {
            return Ok(());
        }
        let reason = "its checksum does not match: the file was altered";
        Err(Error::corrupt(&self.path, reason))
    }

    fn bytes(&self, place: &Place) -> Result<&[u8]> {
        // The header was checked against the file's length, so this is there unless the file shrinks meanwhile.
        let bytes = self.map.get(place.bytes.clone());
        bytes.ok_or_else(|| Error::corrupt(&self.path, "it is shorter than its header says"))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the tensors, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Sizes of a tensor.
    pub fn size(&self, name: &str) -> Option<&[i64]> {
        self.places.get(name).map(|place| place.size.as_slice())
    }

    /// Kind of a tensor.
    pub fn kind(&self, name: &str) -> Option<Kind> {
        self.places.get(name).map(|place| place.kind)
    }

    /// A tensor, copied to the CPU in its own kind.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when there is none of this name.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let place = self
            .places
            .get(name)
            .ok_or_else(|| Error::corrupt(&self.path, format!("it holds no `{name}`")))?;
        Ok(Tensor::f_from_data_size(
            self.bytes(place)?,
            &place.size,
            place.kind,
        )?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{Tensors, read, save};

    fn written() -> Result<(tempfile::TempDir, PathBuf)> {
        let folder = tempfile::tempdir().map_err(Error::io("a temporary folder"))?;
        let path = folder.path().join("model.safetensors");
        let tensors = Tensors::from([
            (
                "a".to_owned(),
                Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0, 5.0, 6.0]).reshape([2, 3]),
            ),
            ("b".to_owned(), Tensor::from_slice(&[7i64])),
        ]);
        save(&path, &tensors, &BTreeMap::new())?;
        Ok((folder, path))
    }

    #[test]
    fn tensors_are_those_of_a_whole_read() -> Result<()> {
        let (_folder, path) = written()?;
        let file = Mapped::open(&path)?;
        let whole = read(&path)?.tensors;
        assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b"]);
        for (name, xs) in &whole {
            assert_eq!(file.size(name), Some(xs.size().as_slice()));
            assert_eq!(file.kind(name), Some(xs.kind()));
            assert_eq!(file.tensor(name)?, *xs);
        }
        let error = file.tensor("c").expect_err("it has no c").to_string();
        assert!(error.ends_with("it holds no `c`"), "{error}");
        Ok(())
    }

    #[test]
    fn truncated_and_altered_files_are_refused() -> Result<()> {
        let (folder, path) = written()?;
        let good = std::fs::read(&path).map_err(Error::io(&path))?;
        let damaged = folder.path().join("damaged");
        for length in 0..good.len() {
            std::fs::write(&damaged, &good[..length]).map_err(Error::io(&damaged))?;
            let error = Mapped::open(&damaged).expect_err("truncated");
            assert!(matches!(error, Error::Corrupt { .. }), "{length}: {error}");
        }
        let mut bytes = good.clone();
        if let Some(last) = bytes.last_mut() {
            *last ^= 1;
        }
        std::fs::write(&damaged, &bytes).map_err(Error::io(&damaged))?;
        let error = Mapped::open(&damaged).expect_err("altered").to_string();
        assert!(error.contains("the file was altered"), "{error}");
        Ok(())
    }
}
