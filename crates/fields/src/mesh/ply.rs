//! PLY files (Turk 1994): a header that declares elements and their properties, then numbers as text or bytes.

use std::path::Path;

use densely_core::{Error, Result};

use super::read::{Parts, fan};

/// Types of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    F32,
    F64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Ascii,
    Little,
    Big,
}

#[derive(Debug)]
struct Property {
    name: String,
    /// Of the count before a list.
    count: Option<Kind>,
    kind: Kind,
}

#[derive(Debug)]
struct Element {
    name: String,
    count: u64,
    properties: Vec<Property>,
}

/// Vertices and triangles of the file `bytes`; numbers of vertices are not yet checked to be there.
pub(super) fn parse(bytes: &[u8], name: &Path) -> Result<Parts> {
    let (encoding, elements, body) = header(bytes, name)?;
    let mut body = Body {
        encoding,
        rest: body,
    };
    let (mut vertices, mut faces) = (Vec::new(), Vec::new());
    for element in &elements {
        match element.name.as_str() {
            "vertex" => read_vertices(element, &mut body, name, &mut vertices)?,
            "face" => read_faces(element, &mut body, name, &mut faces)?,
            _ => skip(element, &mut body, name)?,
        }
    }
    Ok((vertices, faces))
}

fn header<'a>(bytes: &'a [u8], name: &Path) -> Result<(Encoding, Vec<Element>, &'a [u8])> {
    let (mut encoding, mut elements, mut rest) = (None, Vec::<Element>::new(), bytes);
    let mut row = 0;
    loop {
        row += 1;
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            let reason = "its header has no line `end_header`; copy or download it again";
            return Err(Error::corrupt(name, reason));
        };
        let line = String::from_utf8_lossy(&rest[..end]);
        rest = &rest[end + 1..];
        let words: Vec<&str> = line.split_whitespace().collect();
        let fail = |reason: String| Error::Data {
            path: name.to_owned(),
            row: Some(row),
            column: None,
            reason,
        };
        let kind = |word: &str| {
            kind(word).ok_or_else(|| fail(format!("`{word}` is no type of number of PLY")))
        };
        match words.as_slice() {
            ["ply"] | ["comment" | "obj_info", ..] | [] => {}
            ["format", word, _version] => {
                encoding = Some(match *word {
                    "ascii" => Encoding::Ascii,
                    "binary_little_endian" => Encoding::Little,
                    "binary_big_endian" => Encoding::Big,
                    _ => {
                        return Err(fail(format!(
                            "`{word}` is no format of PLY; expected ascii, binary_little_endian or binary_big_endian"
                        )));
                    }
                });
            }
            ["element", element, count] => elements.push(Element {
                name: (*element).to_owned(),
                count: count
                    .parse()
                    .map_err(|_| fail(format!("`{count}` is no count of elements")))?,
                properties: Vec::new(),
            }),
            ["property", of @ .., property] if matches!(of.len(), 1 | 3) => {
                let (count, item) = match of {
                    ["list", count, item] => (Some(kind(count)?), kind(item)?),
                    [item] => (None, kind(item)?),
                    _ => return Err(fail(format!("`{line}` declares no property"))),
                };
                let Some(element) = elements.last_mut() else {
                    return Err(fail(
                        "a property stands before the first element".to_owned(),
                    ));
                };
                element.properties.push(Property {
                    name: (*property).to_owned(),
                    count,
                    kind: item,
                });
            }
            ["end_header"] => break,
            _ => {
                let line: String = line.chars().take(60).collect();
                return Err(fail(format!(
                    "`{}` is no line of a PLY header",
                    line.trim()
                )));
            }
        }
    }
    let Some(encoding) = encoding else {
        let reason = "its header has no line `format`";
        return Err(Error::data(name, reason));
    };
    Ok((encoding, elements, rest))
}

fn kind(word: &str) -> Option<Kind> {
    Some(match word {
        "char" | "int8" => Kind::I8,
        "uchar" | "uint8" => Kind::U8,
        "short" | "int16" => Kind::I16,
        "ushort" | "uint16" => Kind::U16,
        "int" | "int32" => Kind::I32,
        "uint" | "uint32" => Kind::U32,
        "float" | "float32" => Kind::F32,
        "double" | "float64" => Kind::F64,
        _ => return None,
    })
}

/// What follows the header.
struct Body<'a> {
    encoding: Encoding,
    rest: &'a [u8],
}

impl Body<'_> {
    /// The next number, exact as f64 for every kind; none at the end, or where the text is no number.
    fn number(&mut self, kind: Kind) -> Option<f64> {
        if self.encoding == Encoding::Ascii {
            let text = self.rest.trim_ascii_start();
            let end = text
                .iter()
                .position(u8::is_ascii_whitespace)
                .unwrap_or(text.len());
            self.rest = &text[end..];
            return std::str::from_utf8(&text[..end]).ok()?.parse().ok();
        }
        Some(match kind {
            Kind::I8 => i8::from_le_bytes(self.bytes()?).into(),
            Kind::U8 => u8::from_le_bytes(self.bytes()?).into(),
            Kind::I16 => i16::from_le_bytes(self.bytes()?).into(),
            Kind::U16 => u16::from_le_bytes(self.bytes()?).into(),
            Kind::I32 => i32::from_le_bytes(self.bytes()?).into(),
            Kind::U32 => u32::from_le_bytes(self.bytes()?).into(),
            Kind::F32 => f32::from_le_bytes(self.bytes()?).into(),
            Kind::F64 => f64::from_le_bytes(self.bytes()?),
        })
    }

    /// The next bytes, the lowest first.
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (mut bytes, rest) = self.rest.split_first_chunk::<N>().map(|(b, r)| (*b, r))?;
        self.rest = rest;
        if self.encoding == Encoding::Big {
            bytes.reverse();
        }
        Some(bytes)
    }

    /// How many items a property has here: 1 unless it is a list.
    fn items(&mut self, property: &Property) -> Option<u64> {
        let Some(kind) = property.count else {
            return Some(1);
        };
        let count = self.number(kind)?;
        (count >= 0.0 && count.fract() == 0.0).then_some(count as u64)
    }
}

/// An element that ends early or holds what is no number.
fn broken(element: &Element, at: u64, name: &Path) -> Error {
    let Element {
        name: what, count, ..
    } = element;
    let reason = format!(
        "`{what}` {at} of {count}, counted from 0, is missing or no number; copy or download it again"
    );
    Error::corrupt(name, reason)
}

fn read_vertices(
    element: &Element,
    body: &mut Body<'_>,
    name: &Path,
    vertices: &mut Vec<[f64; 3]>,
) -> Result<()> {
    let axis = |property: &Property| {
        let found = ["x", "y", "z"]
            .iter()
            .position(|axis| *axis == property.name);
        found.filter(|_| property.count.is_none())
    };
    let axes: Vec<Option<usize>> = element.properties.iter().map(axis).collect();
    if (0..3).any(|axis| !axes.contains(&Some(axis))) {
        let reason = "its vertices have no positions: expected the properties x, y and z";
        return Err(Error::data(name, reason));
    }
    // Memory grows with what is there, not with what the header claims.
    for at in 0..element.count {
        let broken = || broken(element, at, name);
        let mut vertex = [0.0; 3];
        for (property, axis) in element.properties.iter().zip(&axes) {
            for _ in 0..body.items(property).ok_or_else(broken)? {
                let number = body.number(property.kind).ok_or_else(broken)?;
                if let Some(axis) = axis {
                    vertex[*axis] = number;
                }
            }
        }
        vertices.push(vertex);
    }
    Ok(())
}

fn read_faces(
    element: &Element,
    body: &mut Body<'_>,
    name: &Path,
    faces: &mut Vec<[u32; 3]>,
) -> Result<()> {
    let is_corners = |property: &Property| {
        property.count.is_some()
            && matches!(property.name.as_str(), "vertex_indices" | "vertex_index")
    };
    if !element.properties.iter().any(is_corners) {
        let reason = "its faces have no corners: expected the list vertex_indices";
        return Err(Error::data(name, reason));
    }
    let mut polygon = Vec::new();
    for at in 0..element.count {
        let broken = || broken(element, at, name);
        polygon.clear();
        for property in &element.properties {
            for _ in 0..body.items(property).ok_or_else(broken)? {
                let number = body.number(property.kind).ok_or_else(broken)?;
                if is_corners(property) {
                    if !(0.0..=f64::from(u32::MAX)).contains(&number) || number.fract() != 0.0 {
                        let reason = format!(
                            "a corner of face {at}, counted from 0, is the vertex {number}"
                        );
                        return Err(Error::data(name, reason));
                    }
                    polygon.push(number as u32);
                }
            }
        }
        if polygon.len() < 3 {
            let corners = polygon.len();
            let reason =
                format!("face {at}, counted from 0, has {corners} corners; expected at least 3");
            return Err(Error::data(name, reason));
        }
        fan(&polygon, faces);
    }
    Ok(())
}

fn skip(element: &Element, body: &mut Body<'_>, name: &Path) -> Result<()> {
    // Without properties, any number of elements takes no bytes.
    if element.properties.is_empty() {
        return Ok(());
    }
    for at in 0..element.count {
        let broken = || broken(element, at, name);
        for property in &element.properties {
            for _ in 0..body.items(property).ok_or_else(broken)? {
                body.number(property.kind).ok_or_else(broken)?;
            }
        }
    }
    Ok(())
}
