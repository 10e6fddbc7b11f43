//! Pairs for restoration: the same random part, mirrored and turned alike, of a degraded picture and a clean one.

use densely_core::{Error, Result};
use densely_data::Image;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::checks::{probability, side};
use super::geometry::{Padding, Window, crop, hflip, pad, rot90, vflip};
use super::rng::Rng;
use crate::degrade::{Degradation, degrade};

/// Random squares of pairs of pictures. Smaller pictures are first mirrored at their right and lower edge, as `MPRNet`'s loader does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PairTransform {
    /// Side of the square, pixels.
    pub size: i64,
    /// Probability of left becoming right.
    pub hflip: f64,
    /// Probability of top becoming bottom.
    pub vflip: f64,
    /// Whether the square is turned by a random multiple of 90 degrees.
    pub turn: bool,
}

impl Default for PairTransform {
    /// What MAXIM trains with.
    fn default() -> Self {
        Self {
            size: 256,
            hflip: 0.5,
            vflip: 0.5,
            turn: true,
        }
    }
}

impl PairTransform {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Config`] naming what is out of range.
    pub fn validate(&self) -> Result<()> {
        side("size", self.size)?;
        probability("hflip", self.hflip)?;
        probability("vflip", self.vflip)
    }

    /// The same square of both, each `[channels, size, size]`, f32 from 0 to 1 on the CPU.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate); [`Error::Shape`] when the two differ in height or width.
    pub fn apply(
        &self,
        degraded: &Image,
        clean: &Image,
        rng: &mut Rng,
    ) -> Result<(Tensor, Tensor)> {
        let size = |image: &Image| format!("{} × {} pixels", image.height(), image.width());
        if (degraded.height(), degraded.width()) != (clean.height(), clean.width()) {
            return Err(Error::Shape {
                what: "degraded picture".to_owned(),
                expected: format!("{} as the clean one", size(clean)),
                got: size(degraded),
            });
        }
        let place = self.draw(clean, rng)?;
        Ok((
            place.of(degraded)?.to_tensor(),
            place.of(clean)?.to_tensor(),
        ))
    }

    /// A square of a clean picture, degraded and clean, as [`apply`](Self::apply) gives them.
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate) and of the degradations.
    pub fn apply_clean(
        &self,
        clean: &Image,
        degradations: &[Degradation],
        rng: &mut Rng,
    ) -> Result<(Tensor, Tensor)> {
        let clean = self.draw(clean, rng)?.of(clean)?.to_tensor();
        Ok((degrade(&clean, degradations, rng)?, clean))
    }

    fn draw(&self, image: &Image, rng: &mut Rng) -> Result<Place> {
        self.validate()?;
        let size = side("size", self.size)?;
        Ok(Place {
            window: Window::square(size, image.height(), image.width(), rng),
            hflip: rng.chance(self.hflip),
            vflip: rng.chance(self.vflip),
            turns: rng.below(if self.turn { 4 } else { 1 }),
        })
    }
}

struct Place {
    window: Window,
    hflip: bool,
    vflip: bool,
    turns: usize,
}

impl Place {
    fn of(&self, image: &Image) -> Result<Image> {
        let Window {
            top,
            left,
            height,
            width,
        } = self.window;
        let right = (left + width).saturating_sub(image.width());
        let below = (top + height).saturating_sub(image.height());
        let mut part = if right + below > 0 {
            crop(
                &pad(image, [0, 0, right, below], Padding::Reflect)?,
                self.window,
            )?
        } else {
            crop(image, self.window)?
        };
        if self.hflip {
            part = hflip(&part);
        }
        if self.vflip {
            part = vflip(&part);
        }
        rot90(&part, self.turns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transforms::to_image;

    #[test]
    fn smaller_pictures_are_mirrored_right_and_below() -> Result<()> {
        let picture = Image::new(3, 2, 1, vec![10, 20, 30, 40, 50, 60])?;
        let transform = PairTransform {
            size: 4,
            hflip: 0.0,
            vflip: 0.0,
            turn: false,
        };
        let expected = [[10_u8, 20, 30, 20], [40, 50, 60, 50]];
        let expected = [expected, expected].concat().concat();
        let mut rng = Rng::for_picture(0, 0, 0);
        let pair = transform.apply(&picture, &picture, &mut rng)?;
        let made = transform.apply_clean(&picture, &[], &mut rng)?;
        for xs in [&pair.0, &pair.1, &made.0, &made.1] {
            assert_eq!(to_image(xs)?.pixels(), expected);
        }
        Ok(())
    }
}
