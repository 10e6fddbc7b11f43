//! Tables of numbers and of pictures as SVG.

use std::fmt::Write;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use densely_core::{Error, Result};

use super::Axes;
use crate::svg::{escaped, head, shortened, text};

/// A picture in a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// Bytes of a PNG file.
    pub png: Vec<u8>,
    /// Lines below it.
    pub caption: Vec<String>,
    /// Whether the caption is written in red: something is wrong with what it says.
    pub wrong: bool,
}

/// Classes above this number have no counts in their cells, only colours.
const COUNTED: usize = 25;

/// Draws how often each class (rows) was taken for each (columns): the share of the row as a colour, and the count.
///
/// # Errors
/// [`Error::Config`] when `counts` is not a square as large as `labels`; [`Error::Io`].
pub fn matrix(path: &Path, axes: &Axes, labels: &[String], counts: &[Vec<u64>]) -> Result<()> {
    let n = labels.len();
    if n == 0 || counts.len() != n || counts.iter().any(|row| row.len() != n) {
        let reason = format!("must have {n} rows and columns, one of each class");
        return Err(Error::config("counts", reason));
    }
    let side = (640 / n).clamp(4, 44);
    let (left, top) = (140, 40 + if n <= COUNTED { 90 } else { 10 });
    let (width, height) = (left + side * n + 20, top + side * n + 40);
    let mut svg = head(width, height);
    text(&mut svg, width / 2, 22, "middle", 16, &axes.title);
    text(
        &mut svg,
        left + side * n / 2,
        height - 12,
        "middle",
        13,
        &axes.x,
    );
    let _ = write!(
        svg,
        "<text transform=\"translate(14 {}) rotate(-90)\" text-anchor=\"middle\" font-size=\"13\">{}</text>",
        top + side * n / 2,
        escaped(&axes.y)
    );
    for (row, counts) in counts.iter().enumerate() {
        let sum: u64 = counts.iter().sum();
        let y = top + row * side;
        if n <= COUNTED {
            text(
                &mut svg,
                left - 6,
                y + side / 2 + 4,
                "end",
                12,
                &short(&labels[row]),
            );
            let x = left + row * side + side / 2 + 4;
            let _ = write!(
                svg,
                "<text transform=\"translate({x} {}) rotate(-60)\" font-size=\"12\">{}</text>",
                top - 6,
                escaped(&short(&labels[row]))
            );
        }
        // Others are as white as what is behind them; of many classes nearly all are.
        for (column, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let share = *count as f64 / sum as f64;
            let x = left + column * side;
            // From white to the first colour of the other plots.
            let mix = |to: f64| (255.0 + (to - 255.0) * share.sqrt()).round();
            let _ = write!(
                svg,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{side}\" height=\"{side}\" fill=\"rgb({},{},{})\"/>",
                mix(0.0),
                mix(114.0),
                mix(178.0)
            );
            if n <= COUNTED {
                let ink = if share > 0.3 { "#fff" } else { "#333" };
                let _ = write!(
                    svg,
                    "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" font-size=\"11\" fill=\"{ink}\">{count}</text>",
                    x + side / 2,
                    y + side / 2 + 4
                );
            }
        }
    }
    svg += "</svg>\n";
    densely_core::fs::write(path, svg.as_bytes())
}

/// Draws pictures in `columns` columns, each enlarged or made smaller to `side` pixels.
///
/// # Errors
/// [`Error::Config`] when there is no picture or no column; [`Error::Io`].
pub fn pictures(
    path: &Path,
    title: &str,
    cells: &[Cell],
    columns: usize,
    side: usize,
) -> Result<()> {
    if cells.is_empty() || columns == 0 || side == 0 {
        return Err(Error::config(
            "pictures",
            "must hold at least one, in at least one column",
        ));
    }
    let lines = cells
        .iter()
        .map(|cell| cell.caption.len())
        .max()
        .unwrap_or(0);
    let (gap, line, top) = (12, 15, 40);
    let (wide, high) = (side + gap, side + gap + lines * line);
    let rows = cells.len().div_ceil(columns);
    let width = gap + wide * columns.min(cells.len());
    let mut svg = head(width, top + high * rows);
    text(&mut svg, width / 2, 24, "middle", 16, title);
    for (place, cell) in cells.iter().enumerate() {
        let (x, y) = (gap + place % columns * wide, top + place / columns * high);
        let data = STANDARD.encode(&cell.png);
        let _ = write!(
            svg,
            "<image x=\"{x}\" y=\"{y}\" width=\"{side}\" height=\"{side}\" style=\"image-rendering:pixelated\" href=\"data:image/png;base64,{data}\"/>"
        );
        let ink = if cell.wrong { "#d55e00" } else { "#333" };
        for (number, caption) in cell.caption.iter().enumerate() {
            let _ = write!(
                svg,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" font-size=\"12\" fill=\"{ink}\">{}</text>",
                x + side / 2,
                y + side + (number + 1) * line - 2,
                escaped(&short(caption))
            );
        }
    }
    svg += "</svg>\n";
    densely_core::fs::write(path, svg.as_bytes())
}

/// Long names are cut.
fn short(words: &str) -> String {
    shortened(words, 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_has_its_counts_and_names_that_cannot_break_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("confusion.svg");
        let labels = ["<cat & dog>".to_owned(), "b\u{7}".to_owned()];
        let axes = Axes::new("Test", "taken for", "class");
        matrix(&path, &axes, &labels, &[vec![7, 1], vec![0, 42]]).expect("a square");
        let svg = std::fs::read_to_string(&path).expect("the file");
        for part in ["&lt;cat &amp; dog&gt;", ">42<", ">7<", "taken for"] {
            assert!(svg.contains(part), "{part}");
        }
        assert!(!svg.contains('\u{7}'));
        assert_eq!(svg.matches("<rect").count(), 4, "none for no picture");
        assert!(matrix(&path, &axes, &labels, &[vec![1, 2]]).is_err());
    }

    #[test]
    fn pictures_stand_in_rows() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("pictures.svg");
        let cell = Cell {
            png: vec![1, 2, 3],
            caption: vec!["a picture with quite a long name".to_owned()],
            wrong: true,
        };
        pictures(&path, "Samples", &vec![cell; 5], 3, 64).expect("pictures");
        let svg = std::fs::read_to_string(&path).expect("the file");
        assert_eq!(svg.matches("<image").count(), 5);
        assert!(svg.contains("base64,AQID") && svg.contains("a picture with quit…"));
        assert!(pictures(&path, "none", &[], 3, 64).is_err());
    }
}
