//! Mesh files, plain or gzipped.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;

use densely_core::{Error, Result};
use flate2::bufread::MultiGzDecoder;

use super::{Mesh, obj, ply};

/// What is refused, and what is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadOptions {
    /// Most bytes, unzipped; 4 GiB. A small zipped file can hold any number of them.
    pub max_bytes: u64,
    /// Whether vertices at the same position are merged; see [`Mesh::weld`].
    pub weld: bool,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            max_bytes: 4 << 30,
            weld: true,
        }
    }
}

impl Mesh {
    /// Reads the OBJ or PLY file at `path` with the default [`ReadOptions`]; see [`decode`](Self::decode).
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, and those of [`decode`](Self::decode).
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_with(path, &ReadOptions::default())
    }

    /// Reads the OBJ or PLY file at `path`; see [`decode`](Self::decode).
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, and those of [`decode`](Self::decode).
    pub fn read_with(path: &Path, options: &ReadOptions) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        Self::decode(file, path, options)
    }

    /// Decodes an OBJ file or a PLY file (ascii, binary little or big endian), zipped by gzip or not, from `source`.
    ///
    /// PLY files and gzip are told by their content, OBJ files by the ending of `name`, which also stands in errors. Of an OBJ file, vertices and faces are read,
    /// of all objects and groups together; of a PLY file, the positions of `vertex` and the list `vertex_indices` of `face`. Polygons are cut into triangles
    /// from their first corner.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a truncated or damaged file; [`Error::Data`], with the line where there is one, for other formats, words that are no
    /// numbers, numbers that no vertex has, files without a face, and files beyond `options`; those of [`Mesh::new`].
    pub fn decode(source: impl Read, name: &Path, options: &ReadOptions) -> Result<Self> {
        let bytes = unzipped(source, name, options.max_bytes)?;
        let ending = name.with_extension("");
        let zipped = name.extension().is_some_and(|ending| ending == "gz");
        let ending = if zipped { &ending } else { name }.extension();
        let (vertices, faces) = if bytes.starts_with(b"ply") {
            ply::parse(&bytes, name)?
        } else if ending.is_some_and(|ending| ending.eq_ignore_ascii_case("obj")) {
            obj::parse(&bytes, name)?
        } else {
            let reason = "is no mesh of a known format; expected a PLY file, or an OBJ file that ends in .obj or .obj.gz";
            return Err(Error::data(name, reason));
        };
        let mut mesh = Self::checked(name, vertices, faces)?;
        if options.weld {
            mesh.weld();
        }
        Ok(mesh)
    }
}

/// All bytes of `source`, unzipped where they are zipped.
fn unzipped(source: impl Read, name: &Path, most: u64) -> Result<Vec<u8>> {
    let mut source = BufReader::new(source);
    let read = |source: &mut dyn Read, bytes: &mut Vec<u8>| {
        let read = source.take(most.saturating_add(1)).read_to_end(bytes);
        match read {
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::UnexpectedEof
                ) =>
            {
                let reason = format!("it cannot be unzipped ({e}); copy or download it again");
                Err(Error::corrupt(name, reason))
            }
            Err(e) => Err(Error::io(name)(e)),
            Ok(_) if bytes.len() as u64 > most => {
                let reason =
                    format!("has more than {most} bytes; raise `max_bytes` if it is a mesh");
                Err(Error::data(name, reason))
            }
            Ok(_) => Ok(()),
        }
    };
    // The first two bytes tell.
    let mut bytes = Vec::new();
    (&mut source)
        .take(2)
        .read_to_end(&mut bytes)
        .map_err(Error::io(name))?;
    if bytes == [0x1f, 0x8b] {
        let zipped = bytes.chain(source);
        let mut unzipped = Vec::new();
        read(
            &mut MultiGzDecoder::new(BufReader::new(zipped)),
            &mut unzipped,
        )?;
        return Ok(unzipped);
    }
    read(&mut source, &mut bytes)?;
    Ok(bytes)
}

/// Positions, and triangles of their numbers.
pub(super) type Parts = (Vec<[f64; 3]>, Vec<[u32; 3]>);

/// Cuts a polygon into triangles from its first corner.
pub(super) fn fan(polygon: &[u32], faces: &mut Vec<[u32; 3]>) {
    for pair in polygon.windows(2).skip(1) {
        faces.push([polygon[0], pair[0], pair[1]]);
    }
}
