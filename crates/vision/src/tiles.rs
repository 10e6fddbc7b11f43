//! Pictures of any size in bounded memory: overlapping tiles, blended where they overlap.

use densely_core::{Error, Result, check};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// How a large picture is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tiling {
    /// Side of a tile, pixels. A picture that is not larger is restored whole.
    pub tile: i64,
    /// Pixels that neighbours share at least; their weights rise and fall linearly over what they share.
    pub overlap: i64,
}

impl Default for Tiling {
    fn default() -> Self {
        Self {
            tile: 512,
            overlap: 64,
        }
    }
}

impl Tiling {
    /// No picture is cut.
    pub const WHOLE: Self = Self {
        tile: i64::MAX / 4,
        overlap: 0,
    };

    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        check::positive("tile", self.tile)?;
        if (0..=self.tile / 2).contains(&self.overlap) {
            return Ok(());
        }
        let reason = format!(
            "must lie between 0 and half of the tile ({}), got {}",
            self.tile / 2,
            self.overlap
        );
        Err(Error::config("overlap", reason))
    }

    /// First pixels of the tiles along a side of `size` pixels: evenly spread, the first at the beginning, the last at the end.
    pub fn starts(&self, size: i64) -> Vec<i64> {
        if size <= self.tile {
            return vec![0];
        }
        // A tiling that was not validated may overlap by more than a tile.
        let (last, step) = (size - self.tile, (self.tile - self.overlap).max(1));
        let count = (last + step - 1) / step;
        (0..=count).map(|place| last * place / count).collect()
    }

    /// Tiles of a picture of these sides.
    pub fn count(&self, height: i64, width: i64) -> usize {
        self.starts(height).len() * self.starts(width).len()
    }

    /// Weights of each tile's pixels along a side of `size` pixels: where tiles overlap, theirs add up to 1. The outer quarter of what two share counts
    /// for nothing, so that a model that sees no further than that gives what it would for the whole picture.
    fn weights(&self, starts: &[i64], size: i64) -> Vec<Vec<f32>> {
        let side = self.tile.min(size);
        let ramp = |shared: i64, pixel: i64| {
            let (outer, pixel) = (shared / 4, pixel as f32 + 0.5);
            ((pixel - outer as f32) / (shared - 2 * outer).max(1) as f32).clamp(0.0, 1.0)
        };
        let shared = |left: Option<&i64>, right: Option<&i64>| match (left, right) {
            (Some(left), Some(right)) => left + side - right,
            _ => 0,
        };
        let mut weights: Vec<Vec<f32>> = (0..starts.len())
            .map(|place| {
                let before = shared(place.checked_sub(1).map(|i| &starts[i]), starts.get(place));
                let behind = shared(starts.get(place), starts.get(place + 1));
                let of = |n: i64, pixel: i64| if n > 0 { ramp(n, pixel) } else { 1.0 };
                (0..side)
                    .map(|pixel| of(before, pixel).min(of(behind, side - 1 - pixel)))
                    .collect()
            })
            .collect();
        let mut sums = vec![0.0f32; size as usize];
        for (start, weights) in starts.iter().zip(&weights) {
            for (pixel, weight) in weights.iter().enumerate() {
                sums[*start as usize + pixel] += weight;
            }
        }
        for (start, weights) in starts.iter().zip(&mut weights) {
            for (pixel, weight) in weights.iter_mut().enumerate() {
                *weight /= sums[*start as usize + pixel];
            }
        }
        weights
    }

    /// `restore` of each tile of `image` `[1, channels, height, width]`, blended to `[1, channels, height, width]` on the CPU; `observe` is told of
    /// the tiles done and of all.
    ///
    /// Memory is that of the picture twice in f32 and of one tile's restoration. What a model sees of a pixel's surroundings ends at its tile: a model that looks
    /// further than the overlap, such as MAXIM's grid over the whole picture, gives slightly other values than for the picture at once.
    /// # Errors
    /// Those of [`validate`](Self::validate) and `restore`; [`Error::Shape`] for another number of dimensions, or for a `restore` that
    /// changes the size.
    pub fn restore(
        &self,
        image: &Tensor,
        restore: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
        observe: &mut dyn FnMut(usize, usize),
    ) -> Result<Tensor> {
        self.validate()?;
        check::shape("image", image, &[Some(1), None, None, None])?;
        let size = image.size();
        let [height, width] = [size[2], size[3]];
        if height <= self.tile && width <= self.tile {
            let restored = same_size(restore(image)?, image)?;
            observe(1, 1);
            return Ok(restored.to_device(Device::Cpu));
        }
        let _no_grad = tch::no_grad_guard();
        let (rows, columns) = (self.starts(height), self.starts(width));
        let [down, across] =
            [(&rows, height, [-1, 1]), (&columns, width, [1, -1])].map(|(starts, size, shape)| {
                let weights = self.weights(starts, size).into_iter();
                weights
                    .map(|xs| Tensor::from_slice(&xs).view(shape))
                    .collect::<Vec<_>>()
            });
        let sides = [self.tile.min(height), self.tile.min(width)];
        let ys = Tensor::zeros(&size, (Kind::Float, Device::Cpu));
        let mut done = 0;
        for (top, down) in rows.iter().zip(&down) {
            for (left, across) in columns.iter().zip(&across) {
                let window = |xs: &Tensor| xs.narrow(2, *top, sides[0]).narrow(3, *left, sides[1]);
                let tile = window(image);
                let restored = same_size(restore(&tile)?, &tile)?;
                let restored = restored.to_device(Device::Cpu).to_kind(Kind::Float);
                let _ = window(&ys).g_add_(&(restored * down * across));
                done += 1;
                observe(done, rows.len() * columns.len());
            }
        }
        Ok(ys)
    }
}

fn same_size(restored: Tensor, image: &Tensor) -> Result<Tensor> {
    if restored.size() == image.size() {
        return Ok(restored);
    }
    Err(Error::Shape {
        what: "restored tile".to_owned(),
        expected: format!("{:?}", image.size()),
        got: format!("{:?}", restored.size()),
    })
}

/// The mean of `restore` over the eight turns and reflections of `image` `[batch, channels, height, width]`, each turned back: slower, and a little better.
///
/// # Errors
/// Those of `restore`.
pub fn self_ensemble(
    image: &Tensor,
    restore: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for flipped in [false, true] {
        for turns in 0..4 {
            let seen = image.rot90(turns, [2, 3]);
            let seen = if flipped { seen.flip([3]) } else { seen };
            let restored = restore(&seen.contiguous())?;
            let restored = if flipped {
                restored.flip([3])
            } else {
                restored
            };
            let restored = restored.rot90(-turns, [2, 3]);
            sum = Some(match sum {
                Some(sum) => sum + restored,
                None => restored,
            });
        }
    }
    sum.map(|sum| sum / 8.0)
        .ok_or_else(|| Error::config("ensemble", "has no member"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(height: i64, width: i64) -> Tensor {
        densely_core::seeded(3, || {
            Tensor::rand([1, 3, height, width], (Kind::Float, Device::Cpu))
        })
    }

    #[test]
    fn tiles_cover_a_side_and_their_weights_add_up_to_one() {
        for (tile, overlap, size) in [
            (16, 4, 50),
            (16, 8, 17),
            (16, 8, 25),
            (16, 0, 48),
            (7, 3, 100),
            (16, 4, 16),
            (16, 5, 9),
        ] {
            let tiling = Tiling { tile, overlap };
            let starts = tiling.starts(size);
            let mut sums = vec![0.0f32; size as usize];
            for (start, weights) in starts.iter().zip(tiling.weights(&starts, size)) {
                for (pixel, weight) in weights.iter().enumerate() {
                    assert!(weight.is_finite(), "{tile} {overlap} {size}");
                    sums[*start as usize + pixel] += weight;
                }
            }
            for sum in sums {
                assert!((sum - 1.0).abs() < 1e-5, "{tile} {overlap} {size}: {sum}");
            }
            for pair in starts.windows(2) {
                assert!(
                    pair[0] + tile - pair[1] >= overlap,
                    "{tile} {overlap} {size}"
                );
            }
        }
    }

    #[test]
    fn a_local_model_is_the_same_in_tiles() {
        // Sees 2 pixels around, which is less than a quarter of the overlap.
        let kernel = densely_core::seeded(5, || {
            Tensor::rand([3, 3, 5, 5], (Kind::Float, Device::Cpu)) * 0.05
        });
        let model = |xs: &Tensor| Ok(xs.conv2d(&kernel, None::<&Tensor>, 1, 2, 1, 1));
        let image = picture(61, 90);
        let whole = model(&image).expect("a picture");
        let mut seen = Vec::new();
        let tiled = Tiling {
            tile: 32,
            overlap: 12,
        }
        .restore(&image, &mut |xs| model(xs), &mut |done, all| {
            seen.push((done, all));
        })
        .expect("tiles");
        assert_eq!(seen.last(), Some(&(seen.len(), seen.len())));
        assert!((&whole - &tiled).abs().max().double_value(&[]) < 1e-5);
    }

    #[test]
    fn pixelwise_models_are_equal_and_small_pictures_are_whole() {
        let tiling = Tiling {
            tile: 16,
            overlap: 4,
        };
        let image = picture(40, 33);
        let tiled = tiling
            .restore(&image, &mut |xs| Ok(xs * 2.0), &mut |_, _| {})
            .expect("tiles");
        assert!((tiled - &image * 2.0).abs().max().double_value(&[]) < 1e-6);
        let small = picture(16, 9);
        let mut calls = 0;
        let once = tiling
            .restore(
                &small,
                &mut |xs| {
                    calls += 1;
                    Ok(xs * 2.0)
                },
                &mut |_, _| {},
            )
            .expect("one tile");
        assert_eq!((calls, once == &small * 2.0), (1, true));
    }

    #[test]
    fn an_overlap_of_a_whole_tile_counts() {
        for overlap in [16, 20] {
            let tiling = Tiling { tile: 16, overlap };
            assert_eq!(tiling.starts(19), [0, 1, 2, 3]);
            assert_eq!(tiling.count(19, 16), 4);
        }
    }

    #[test]
    fn wrong_sizes_are_named() {
        let wrong = Tiling {
            tile: 16,
            overlap: 9,
        };
        assert!(
            wrong
                .validate()
                .is_err_and(|e| e.to_string().contains("overlap"))
        );
        let error = Tiling {
            tile: 16,
            overlap: 4,
        }
        .restore(
            &picture(40, 40),
            &mut |xs| Ok(xs.narrow(2, 0, 3)),
            &mut |_, _| {},
        );
        assert!(error.is_err_and(|e| e.to_string().contains("restored tile")));
    }

    #[test]
    fn the_ensemble_is_the_mean_over_turns() {
        let image = picture(5, 8);
        let same = self_ensemble(&image, &mut |xs| Ok(xs.shallow_clone())).expect("turns");
        assert!((same - &image).abs().max().double_value(&[]) < 1e-6);
        // A shift to the right becomes a shift to each side.
        let shift = |xs: &Tensor| Ok(xs.roll([1], [3]));
        let mean = self_ensemble(&image, &mut |xs| shift(xs)).expect("turns");
        let sides = [(1, 3), (-1, 3), (1, 2), (-1, 2)].map(|(by, axis)| image.roll([by], [axis]));
        let expected = sides.iter().fold(image.zeros_like(), |sum, xs| sum + xs) / 4.0;
        assert!((mean - expected).abs().max().double_value(&[]) < 1e-6);
    }
}
