//! Pictures of traces as SVG: a heat map of tokens by layers, and lines of averages with their intervals.
//!
//! Colours are those of the paper's figures: purple for states, green for MLPs, red for attentions. Text is set in the viewer's
//! sans-serif font. Files are whole or absent.

mod lines;

use std::fmt::Write;
use std::path::Path;

use densely_core::{Error, Result};
use densely_train::svg::{head, shortened};

pub use lines::{Line, lines};

use crate::average::{Averages, Estimate, what};
use crate::trace::{Grid, Restore, Trace};

/// Colours from light to dark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colours {
    /// `ColorBrewer`'s purples.
    Purples,
    /// Its greens.
    Greens,
    /// Its reds.
    Reds,
}

impl Colours {
    /// Those of the paper's figure of this kind.
    pub const fn of(kind: Restore) -> Self {
        match kind {
            Restore::Block => Self::Purples,
            Restore::Mlp | Restore::SeveredMlp => Self::Greens,
            Restore::Attention | Restore::SeveredAttention => Self::Reds,
        }
    }

    const fn steps(self) -> [u32; 9] {
        match self {
            Self::Purples => [
                0xfc_fb_fd, 0xef_ed_f5, 0xda_da_eb, 0xbc_bd_dc, 0x9e_9a_c8, 0x80_7d_ba, 0x6a_51_a3,
                0x54_27_8f, 0x3f_00_7d,
            ],
            Self::Greens => [
                0xf7_fc_f5, 0xe5_f5_e0, 0xc7_e9_c0, 0xa1_d9_9b, 0x74_c4_76, 0x41_ab_5d, 0x23_8b_45,
                0x00_6d_2c, 0x00_44_1b,
            ],
            Self::Reds => [
                0xff_f5_f0, 0xfe_e0_d2, 0xfc_bb_a1, 0xfc_92_72, 0xfb_6a_4a, 0xef_3b_2c, 0xcb_18_1d,
                0xa5_0f_15, 0x67_00_0d,
            ],
        }
    }

    /// The colour of a share of the way from light to dark, as `#rrggbb`.
    fn at(self, share: f64) -> String {
        let steps = self.steps();
        let share = if share.is_nan() { 0.0 } else { share };
        let place = share.clamp(0.0, 1.0) * (steps.len() - 1) as f64;
        let below = (place.floor() as usize).min(steps.len() - 2);
        let part = place - below as f64;
        let mixed = [16u32, 8, 0].map(|shift| {
            let of = |step: u32| f64::from((step >> shift) & 0xff);
            let (a, b) = (of(steps[below]), of(steps[below + 1]));
            (a + (b - a) * part).round() as u32
        });
        format!("#{:02x}{:02x}{:02x}", mixed[0], mixed[1], mixed[2])
    }
}

/// A heat map: a row of cells for each label, the first one on top.
#[derive(Debug, Clone, PartialEq)]
pub struct Heatmap {
    /// Above the picture.
    pub title: String,
    /// Below it.
    pub x: String,
    /// Left of each row.
    pub labels: Vec<String>,
    /// A row for each label, all of one length.
    pub values: Grid,
    /// Value of the lightest colour; smaller ones have it too.
    pub low: f64,
    /// Value of the darkest colour; larger ones have it too.
    pub high: f64,
    /// From light to dark.
    pub colours: Colours,
    /// Below the bar of colours.
    pub bar: String,
}

impl Heatmap {
    /// The picture of one kind of a trace, laid out as the paper's: from the corrupted probability up, the subject's tokens starred.
    ///
    /// # Errors
    /// [`Error::Config`] when the trace has no such kind.
    pub fn of_trace(trace: &Trace, kind: Restore, model: &str) -> Result<Self> {
        let Some(values) = trace.scores.get(&kind) else {
            let reason = format!("{kind} was not traced");
            return Err(Error::config("kinds", reason));
        };
        let labels = trace.tokens.iter().enumerate().map(|(place, token)| {
            let star = if trace.subject.contains(&place) {
                "*"
            } else {
                ""
            };
            format!("{}{star}", shown(token))
        });
        let window = trace.window;
        let (title, x) = match kind {
            Restore::Block => (
                "Impact of restoring state after corrupted input".to_owned(),
                format!("single restored layer within {model}"),
            ),
            Restore::Mlp => (
                "Impact of restoring MLP after corrupted input".to_owned(),
                format!("center of interval of {window} restored MLP layers"),
            ),
            Restore::Attention => (
                "Impact of restoring Attn after corrupted input".to_owned(),
                format!("center of interval of {window} restored Attn layers"),
            ),
            Restore::SeveredMlp => (
                "Impact of restoring state with MLP severed".to_owned(),
                format!("single restored layer within {model}"),
            ),
            Restore::SeveredAttention => (
                "Impact of restoring state with Attn severed".to_owned(),
                format!("single restored layer within {model}"),
            ),
        };
        Ok(Self {
            title,
            x,
            labels: labels.collect(),
            low: trace.low,
            high: largest(values),
            values: values.clone(),
            colours: Colours::of(kind),
            bar: format!("p({})", trace.answer),
        })
    }

    /// The picture of one kind's average indirect effects.
    ///
    /// # Errors
    /// [`Error::Config`] when the averages have no such kind.
    pub fn of_averages(averages: &Averages, kind: Restore) -> Result<Self> {
        let Some(groups) = averages.kinds.get(&kind) else {
            let reason = format!("{kind} was not traced");
            return Err(Error::config("kinds", reason));
        };
        let row = |effects: &[Estimate]| effects.iter().map(|e| e.mean).collect();
        let values: Grid = groups.iter().map(|group| row(&group.effects)).collect();
        Ok(Self {
            title: format!(
                "Average indirect effect of {} over {} facts",
                what(kind),
                averages.facts
            ),
            x: "layer".to_owned(),
            labels: groups
                .iter()
                .map(|group| group.place.name().to_owned())
                .collect(),
            low: 0.0,
            high: largest(&values),
            values,
            colours: Colours::of(kind),
            bar: "AIE".to_owned(),
        })
    }

    /// Writes the picture.
    ///
    /// # Errors
    /// [`Error::Config`] when there is no cell or rows do not fit the labels; [`Error::Io`].
    pub fn write(&self, path: &Path) -> Result<()> {
        densely_core::fs::write(path, self.svg()?.as_bytes())
    }

    /// The picture as SVG.
    ///
    /// # Errors
    /// [`Error::Config`] when there is no cell or rows do not fit the labels.
    pub fn svg(&self) -> Result<String> {
        let columns = self.values.first().map_or(0, Vec::len);
        let fits = self.values.len() == self.labels.len()
            && self.values.iter().all(|row| row.len() == columns);
        if columns == 0 || !fits {
            return Err(Error::config(
                "heat map",
                "needs a row of cells for each label, all of one length",
            ));
        }
        let rows = self.values.len();
        let letters = self.labels.iter().map(|label| width(label)).max();
        let left = 24 + 8 * letters.unwrap_or(0);
        let (top, wide, high) = (44, (480 / columns).clamp(4, 40), 20);
        let (right, bottom) = (left + wide * columns, top + high * rows);
        let side = (right + 110).max(24 + 8 * width(&self.title));
        let mut svg = head(side, bottom + 70);
        text(&mut svg, side / 2, 24, "middle", 15, &self.title);
        let range = (self.high - self.low).max(f64::MIN_POSITIVE);
        for (row, (label, values)) in self.labels.iter().zip(&self.values).enumerate() {
            let y = top + row * high;
            text(&mut svg, left - 6, y + high / 2 + 4, "end", 12, label);
            for (column, value) in values.iter().enumerate() {
                let colour = self.colours.at((value - self.low) / range);
                let _ = write!(
                    svg,
                    "<rect x=\"{}\" y=\"{y}\" width=\"{wide}\" height=\"{high}\" fill=\"{colour}\"><title>{}, layer {column}: {value:.4}</title></rect>",
                    left + column * wide,
                    escaped(label),
                );
            }
        }
        for column in (0..columns).step_by(if columns > 8 { 5 } else { 1 }) {
            let x = left + column * wide + wide / 2;
            text(&mut svg, x, bottom + 16, "middle", 11, &column.to_string());
        }
        text(
            &mut svg,
            left + wide * columns / 2,
            bottom + 36,
            "middle",
            12,
            &self.x,
        );
        self.bar(&mut svg, right + 20, top, bottom - top);
        svg += "</svg>\n";
        Ok(svg)
    }

    /// The bar of colours with its ends and three values between.
    fn bar(&self, svg: &mut String, x: usize, top: usize, height: usize) {
        const STEPS: usize = 40;
        for step in 0..STEPS {
            let y = top as f64 + height as f64 * step as f64 / STEPS as f64;
            let colour = self.colours.at(1.0 - (step as f64 + 0.5) / STEPS as f64);
            let _ = write!(
                svg,
                "<rect x=\"{x}\" y=\"{y:.2}\" width=\"14\" height=\"{:.2}\" fill=\"{colour}\"/>",
                // A little more, so that no line shows between them.
                height as f64 / STEPS as f64 + 0.5
            );
        }
        // A bar of one row has no room for more than its ends.
        let ticks = if height < 60 { 1 } else { 4 };
        for tick in 0..=ticks {
            let share = tick as f64 / ticks as f64;
            let y = top + height - (height as f64 * share).round() as usize;
            let value = self.low + (self.high - self.low) * share;
            text(svg, x + 18, y + 4, "start", 11, &format!("{value:.3}"));
        }
        text(svg, x + 7, top + height + 18, "middle", 12, &self.bar);
    }
}

/// Writes the lines of one kind's average indirect effects by layer, with their intervals.
///
/// # Errors
/// [`Error::Config`] when the averages have no such kind; [`Error::Io`].
pub fn average_lines(path: &Path, averages: &Averages, kind: Restore, model: &str) -> Result<()> {
    let Some(groups) = averages.kinds.get(&kind) else {
        let reason = format!("{kind} was not traced");
        return Err(Error::config("kinds", reason));
    };
    let found: Vec<Line> = groups
        .iter()
        .map(|group| Line {
            name: group.place.name().to_owned(),
            points: group.effects.clone(),
        })
        .collect();
    lines(
        path,
        &format!("Average indirect effect of {}", what(kind)),
        &format!("layer of {model}"),
        "average indirect effect on p(answer)",
        &found,
    )
}

fn largest(values: &[Vec<f64>]) -> f64 {
    values
        .iter()
        .flatten()
        .copied()
        .filter(|value| value.is_finite())
        .fold(f64::NEG_INFINITY, f64::max)
        .max(f64::MIN)
}

/// A token as it is shown: the space before a word left out, others and line breaks made visible.
fn shown(token: &str) -> String {
    let word = token.strip_prefix(' ').unwrap_or(token);
    if word.is_empty() {
        return "␣".to_owned();
    }
    word.replace('\n', "⏎")
}

/// Letters of a text at most.
const LETTERS: usize = 60;

/// Letters that a text takes, long ones cut.
fn width(words: &str) -> usize {
    words.chars().count().min(LETTERS)
}

/// Puts a line of text, long ones cut.
fn text(svg: &mut String, x: usize, y: usize, anchor: &str, size: usize, words: &str) {
    densely_train::svg::text(svg, x, y, anchor, size, &shortened(words, LETTERS));
}

/// Text that cannot break the file, long ones cut.
fn escaped(words: &str) -> String {
    densely_train::svg::escaped(&shortened(words, LETTERS))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn colours_run_from_light_to_dark() {
        assert_eq!(Colours::Purples.at(0.0), "#fcfbfd");
        assert_eq!(Colours::Purples.at(1.0), "#3f007d");
        assert_eq!(Colours::Reds.at(7.0), "#67000d");
        assert_eq!(Colours::Greens.at(0.5), "#74c476");
        assert_eq!(Colours::Greens.at(f64::NAN), "#f7fcf5");
    }

    #[test]
    fn a_trace_becomes_a_picture_that_its_tokens_cannot_break() -> Result<()> {
        let trace = Trace {
            tokens: ["<a & b>", " Space", "\u{7}\n"].map(str::to_owned).to_vec(),
            subject: 1..2,
            answer: "x<y".to_owned(),
            answer_ids: vec![3],
            high: 0.9,
            low: 0.1,
            low_of_draws: vec![0.1],
            window: 10,
            scores: BTreeMap::from([(Restore::Mlp, vec![vec![0.1, 0.2]; 3])]),
        };
        let map = Heatmap::of_trace(&trace, Restore::Mlp, "gpt2")?;
        let svg = map.svg()?;
        for part in [
            "&lt;a &amp; b&gt;",
            ">Space*<",
            "p(x&lt;y)",
            "interval of 10",
        ] {
            assert!(svg.contains(part), "{part}");
        }
        assert!(!svg.contains('\u{7}'));
        assert_eq!(svg.matches("<title>").count(), 6);
        let long = Heatmap {
            title: "<".repeat(61),
            ..map.clone()
        };
        let cut = format!(">{}…</text>", "&lt;".repeat(59));
        assert!(long.svg()?.contains(&cut), "letters are cut, not bytes");
        assert!(Heatmap::of_trace(&trace, Restore::Block, "gpt2").is_err());
        let torn = Heatmap {
            values: vec![vec![0.1], vec![]],
            ..map
        };
        assert!(torn.svg().is_err());
        Ok(())
    }
}
