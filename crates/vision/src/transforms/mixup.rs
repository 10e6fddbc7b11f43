//! Pictures of a batch mixed with each other, and their targets likewise: Mixup and `CutMix`.
//! Papers: Zhang et al. 2018, arXiv 1710.09412; Yun et al. 2019, arXiv 1905.04899. Follows: timm 1.0.31, `timm/data/mixup.py`, mode `batch`.

use densely_core::{Error, Result, check};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::checks::{not_negative, probability};
use super::geometry::Window;
use super::rng::Rng;

/// What one batch is mixed by: picture i with picture batch − 1 − i.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mix {
    /// Nothing is mixed.
    None,
    /// The sum of `lam` times the picture and 1 − `lam` times the other.
    Blend {
        /// Share of the picture itself.
        lam: f64,
    },
    /// The window is taken from the other picture.
    Cut {
        /// What is taken from the other; may be empty.
        window: Window,
        /// Share of the picture itself.
        lam: f64,
    },
}

impl Mix {
    /// Share of a picture itself in what is mixed from it.
    pub const fn lam(self) -> f64 {
        match self {
            Self::None => 1.0,
            Self::Blend { lam } | Self::Cut { lam, .. } => lam,
        }
    }

    /// The shares of classes of the mixed pictures, from those of the pictures, `[batch, classes]`.
    pub fn shares(self, shares: &Tensor) -> Tensor {
        shares * self.lam() + shares.flip([0]) * (1.0 - self.lam())
    }

    /// A `CutMix` of pictures of `height` times `width` pixels. Its window has about the share 1 − `lam` of the area about the pixel in `row`
    /// and `column`; where it ends at the picture's edge, the share is what was left.
    pub fn cut(height: usize, width: usize, lam: f64, row: usize, column: usize) -> Self {
        let ratio = (1.0 - lam).max(0.0).sqrt();
        let ends = |length: usize, middle: usize| {
            let part = (length as f64 * ratio) as usize;
            let end = (middle + part.div_ceil(2)).min(length);
            (middle.saturating_sub(part / 2), end)
        };
        let ((top, bottom), (left, right)) = (ends(height, row), ends(width, column));
        let window = Window {
            top,
            left,
            height: bottom - top,
            width: right - left,
        };
        let area = (window.height * window.width) as f64;
        Self::Cut {
            window,
            lam: 1.0 - area / (height * width) as f64,
        }
    }

    /// The mixed pictures. In restoration the targets are mixed by the same call.
    ///
    /// # Shapes
    /// `xs`: `[batch, channels, height, width]`, floats. The middle picture of an odd batch stays as it is.
    ///
    /// # Errors
    /// [`Error::Shape`] for another rank, or a window that is not inside the pictures.
    pub fn apply(self, xs: &Tensor) -> Result<Tensor> {
        check::shape("pictures", xs, &[None; 4])?;
        match self {
            Self::None => Ok(xs.shallow_clone()),
            Self::Blend { lam } => Ok(xs * lam + xs.flip([0]) * (1.0 - lam)),
            Self::Cut { window, .. } => {
                let (_, _, height, width) = xs.size4()?;
                let part = |xs: &Tensor| {
                    xs.narrow(2, window.top as i64, window.height as i64)
                        .narrow(3, window.left as i64, window.width as i64)
                };
                let (bottom, right) = (window.top + window.height, window.left + window.width);
                if bottom > height as usize || right > width as usize {
                    return Err(Error::Shape {
                        what: "pictures".to_owned(),
                        expected: format!("at least {bottom} × {right} pixels"),
                        got: format!("{height} × {width} pixels"),
                    });
                }
                let ys = xs.copy();
                part(&ys).copy_(&part(xs).flip([0]));
                Ok(ys)
            }
        }
    }
}

/// Settings of Mixup and `CutMix`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mixup {
    /// The share of Mixup is drawn from Beta(this, this); 0 for no Mixup.
    pub mixup_alpha: f64,
    /// The share of `CutMix` is drawn from Beta(this, this); 0 for no `CutMix`.
    pub cutmix_alpha: f64,
    /// Probability that a batch is mixed.
    pub prob: f64,
    /// Probability of `CutMix` where both are on.
    pub switch_prob: f64,
}

impl Default for Mixup {
    fn default() -> Self {
        Self {
            mixup_alpha: 0.8,
            cutmix_alpha: 1.0,
            prob: 1.0,
            switch_prob: 0.5,
        }
    }
}

impl Mixup {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming what is out of range.
    pub fn validate(&self) -> Result<()> {
        not_negative("mixup_alpha", self.mixup_alpha)?;
        not_negative("cutmix_alpha", self.cutmix_alpha)?;
        probability("prob", self.prob)?;
        probability("switch_prob", self.switch_prob)
    }

    /// How a batch of pictures of `height` times `width` pixels is mixed.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate).
    pub fn draw(&self, height: usize, width: usize, rng: &mut Rng) -> Result<Mix> {
        self.validate()?;
        let (mixup, cutmix) = (self.mixup_alpha > 0.0, self.cutmix_alpha > 0.0);
        if !(mixup || cutmix) || !rng.chance(self.prob) {
            return Ok(Mix::None);
        }
        if cutmix && (!mixup || rng.chance(self.switch_prob)) {
            let lam = rng.beta(self.cutmix_alpha)?;
            return Ok(Mix::cut(
                height,
                width,
                lam,
                rng.below(height),
                rng.below(width),
            ));
        }
        Ok(Mix::Blend {
            lam: rng.beta(self.mixup_alpha)?,
        })
    }

    /// The mixed pictures and their shares of classes.
    ///
    /// # Shapes
    /// `xs`: `[batch, channels, height, width]`, normalised; `shares` and what becomes of them: `[batch, classes]`, such as
    /// [smoothed](crate::losses::smoothed) labels.
    ///
    /// # Errors
    /// [`Error::Shape`] for other shapes; those of [`Mix::apply`].
    pub fn apply(&self, xs: &Tensor, shares: &Tensor, rng: &mut Rng) -> Result<(Tensor, Tensor)> {
        check::shape("pictures", xs, &[None; 4])?;
        let (batch, _, height, width) = xs.size4()?;
        check::shape("shares", shares, &[Some(batch), None])?;
        let mix = self.draw(height as usize, width as usize, rng)?;
        Ok((mix.apply(xs)?, mix.shares(shares)))
    }
}
