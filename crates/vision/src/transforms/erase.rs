//! Random erasing: rectangles of a normalised picture are overwritten.
//! Paper: Zhong et al. 2020, arXiv 1708.04896. Follows: timm 1.0.31, `timm/data/random_erasing.py`.

use densely_core::{Error, Result, check};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::checks::{at_most, probability, probability_range};
use super::geometry::Window;
use super::rng::Rng;

/// Most rectangles of a picture.
const MOST: i64 = 1000;

/// What a rectangle is overwritten with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EraseMode {
    /// 0, which is the mean colour.
    Const,
    /// One normal number for each channel.
    Rand,
    /// A normal number for each pixel and channel.
    Pixel,
}

/// Settings of random erasing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandomErasing {
    /// Probability that a picture is changed at all.
    pub prob: f64,
    /// What rectangles are overwritten with.
    pub mode: EraseMode,
    /// Least and largest share of the picture's area, all rectangles together.
    pub area: [f64; 2],
    /// Least height by width of a rectangle, at most 1; the largest is its inverse.
    pub min_aspect: f64,
    /// Largest number of rectangles; there are from 1 up to this, at most 1000.
    pub count: i64,
}

impl Default for RandomErasing {
    fn default() -> Self {
        Self {
            prob: 0.25,
            mode: EraseMode::Pixel,
            area: [0.02, 1.0 / 3.0],
            min_aspect: 0.3,
            count: 1,
        }
    }
}

impl RandomErasing {
    /// Leaves every picture as it is.
    pub const OFF: Self = Self {
        prob: 0.0,
        mode: EraseMode::Pixel,
        area: [0.02, 1.0 / 3.0],
        min_aspect: 0.3,
        count: 1,
    };

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming what is out of range.
    pub fn validate(&self) -> Result<()> {
        probability("prob", self.prob)?;
        probability_range("area", self.area)?;
        check::positive("count", self.count)?;
        at_most("count", self.count, MOST)?;
        if self.min_aspect > 0.0 && self.min_aspect <= 1.0 {
            return Ok(());
        }
        Err(Error::config(
            "min_aspect",
            format!("must lie in (0, 1], got {}", self.min_aspect),
        ))
    }

    /// The rectangles of a picture of `height` times `width` pixels; one that does not fit in ten tries is left out.
    pub fn draw(&self, height: usize, width: usize, rng: &mut Rng) -> Vec<Window> {
        if !rng.chance(self.prob) {
            return Vec::new();
        }
        let count = 1 + rng.below(self.count.clamp(1, MOST) as usize);
        let area = (height * width) as f64 / count as f64;
        let aspect = self.min_aspect.ln();
        let mut windows = Vec::new();
        for _ in 0..count {
            for _ in 0..10 {
                let part = rng.uniform(self.area[0], self.area[1]) * area;
                let ratio = rng.uniform(aspect, -aspect).exp();
                let h = (part * ratio).sqrt().round_ties_even() as usize;
                let w = (part / ratio).sqrt().round_ties_even() as usize;
                if h < height && w < width {
                    windows.push(Window {
                        top: rng.below(height - h + 1),
                        left: rng.below(width - w + 1),
                        height: h,
                        width: w,
                    });
                    break;
                }
            }
        }
        windows
    }

    /// A copy of the picture with random rectangles overwritten.
    ///
    /// # Shapes
    /// `xs`: `[channels, height, width]`, normalised.
    ///
    /// # Errors
    /// [`Error::Shape`] for another rank; those of [`validate`](Self::validate).
    pub fn apply(&self, xs: &Tensor, rng: &mut Rng) -> Result<Tensor> {
        self.validate()?;
        check::shape("picture", xs, &[None; 3])?;
        let (channels, height, width) = xs.size3()?;
        let windows = self.draw(height as usize, width as usize, rng);
        if windows.is_empty() {
            return Ok(xs.shallow_clone());
        }
        let ys = xs.copy();
        for window in windows {
            let (h, w) = (window.height as i64, window.width as i64);
            let size = match self.mode {
                EraseMode::Pixel => [channels, h, w],
                _ => [channels, 1, 1],
            };
            let count = size.iter().product::<i64>() as usize;
            let values = match self.mode {
                EraseMode::Const => vec![0.0; count],
                _ => rng.normals(count),
            };
            ys.narrow(1, window.top as i64, h)
                .narrow(2, window.left as i64, w)
                .copy_(&Tensor::from_slice(&values).view(size));
        }
        Ok(ys)
    }
}
