//! Writing meshes.

use std::io::{BufWriter, Write};
use std::path::Path;

use densely_core::{Error, Result};

use super::Mesh;

impl Mesh {
    /// Writes the mesh to `path`, whole or not at all, as text when it ends in `.obj`, and as binary PLY when it ends in `.ply`. Both give the same f64 numbers back.
    ///
    /// # Errors
    /// [`Error::Config`] for another ending; [`Error::Io`] naming `path`.
    pub fn write(&self, path: &Path) -> Result<()> {
        let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
        let fail = |e| Error::io(path)(e);
        match ending.to_str() {
            Some("obj") => {
                densely_core::fs::write_with(path, |file| self.to_obj(file).map_err(fail))
            }
            Some("ply") => {
                densely_core::fs::write_with(path, |file| self.to_ply(file).map_err(fail))
            }
            _ => {
                let reason = format!("must end in .obj or .ply, got {}", path.display());
                Err(Error::config("mesh file", reason))
            }
        }
    }

    fn to_obj(&self, file: &mut BufWriter<impl Write>) -> std::io::Result<()> {
        for [x, y, z] in self.vertices() {
            writeln!(file, "v {x} {y} {z}")?;
        }
        for face in self.faces() {
            let [a, b, c] = face.map(|i| u64::from(i) + 1);
            writeln!(file, "f {a} {b} {c}")?;
        }
        Ok(())
    }

    fn to_ply(&self, file: &mut BufWriter<impl Write>) -> std::io::Result<()> {
        let (vertices, faces) = (self.vertices().len(), self.faces().len());
        write!(
            file,
            "ply\nformat binary_little_endian 1.0\n\
             element vertex {vertices}\nproperty double x\nproperty double y\nproperty double z\n\
             element face {faces}\nproperty list uchar uint vertex_indices\nend_header\n"
        )?;
        for x in self.vertices().iter().flatten() {
            file.write_all(&x.to_le_bytes())?;
        }
        for face in self.faces() {
            file.write_all(&[3])?;
            for i in face {
                file.write_all(&i.to_le_bytes())?;
            }
        }
        Ok(())
    }
}
