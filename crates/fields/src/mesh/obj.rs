//! OBJ files: lines `v x y z` and `f a b c …`.

use std::path::Path;

use densely_core::{Error, Result};

use super::read::{Parts, fan};

/// Vertices and triangles of the text `bytes`; numbers of vertices are not yet checked to be there.
pub(super) fn parse(bytes: &[u8], name: &Path) -> Result<Parts> {
    let (mut vertices, mut faces, mut polygon) = (Vec::new(), Vec::new(), Vec::new());
    for (row, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let fail = |reason: String| Error::Data {
            path: name.to_owned(),
            row: Some(row as u64 + 1),
            column: None,
            reason,
        };
        let mut words = line
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty());
        match words.next() {
            Some(b"v") => {
                let mut vertex = [0.0; 3];
                for x in &mut vertex {
                    let word = words.next().unwrap_or_default();
                    *x = number(word).ok_or_else(|| {
                        fail(format!("a vertex has three numbers, got `{}`", text(word)))
                    })?;
                }
                vertices.push(vertex);
            }
            Some(b"f") => {
                polygon.clear();
                for word in words {
                    let corner = index(word, vertices.len()).ok_or_else(|| {
                        fail(format!(
                            "`{}` is no corner of a face: expected the number of a vertex, from 1, or back from -1 of the {} before this line",
                            text(word),
                            vertices.len()
                        ))
                    })?;
                    polygon.push(corner);
                }
                if polygon.len() < 3 {
                    let corners = polygon.len();
                    return Err(fail(format!(
                        "a face has at least 3 corners, got {corners}"
                    )));
                }
                fan(&polygon, &mut faces);
            }
            // Comments, normals, texture coordinates, materials, groups.
            _ => {}
        }
    }
    if vertices.is_empty() && faces.is_empty() {
        let reason = "holds no vertex and no face; expected lines like `v 0 0 1` and `f 1 2 3`";
        return Err(Error::data(name, reason));
    }
    Ok((vertices, faces))
}

fn number(word: &[u8]) -> Option<f64> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

fn text(word: &[u8]) -> String {
    String::from_utf8_lossy(&word[..word.len().min(40)]).into_owned()
}

/// The vertex of a corner `v`, `v/vt`, `v//vn` or `v/vt/vn`, counted from 0. Negative numbers count back from the last of `before` vertices.
fn index(word: &[u8], before: usize) -> Option<u32> {
    let word = word.split(|byte| *byte == b'/').next()?;
    let index: i64 = std::str::from_utf8(word).ok()?.parse().ok()?;
    let from_zero = match index {
        0 => return None,
        1.. => index - 1,
        _ => index.checked_add(before as i64)?,
    };
    u32::try_from(from_zero).ok()
}
