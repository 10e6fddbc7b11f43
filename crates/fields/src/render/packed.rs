//! Samples that lie ray by ray, each ray with as many as it has, and their rendering.
//!
//! Follows nerfacc's packed layout (Li et al. 2023, arXiv 2305.04966): of a ray through a mostly empty scene only the samples in occupied
//! space are kept, and both the network and the rendering work on those alone. Where a tenth of the samples is left this is several times
//! faster than [`dense`](super::dense), which gives the same numbers.

use densely_core::{Error, Result, check};
use densely_torch_ext::{fused, rays as ops};
use tch::{Kind, Tensor};

use super::rays::Rays;
use super::{Rendered, mean_depth, weights};

/// Where samples lie: sample i is the piece of ray `ray[i]` from `start[i]` to `end[i]`, in units of the ray's direction; those of a ray
/// lie side by side, the nearest first.
#[derive(Debug)]
pub struct Samples {
    ray: Tensor,
    start: Tensor,
    end: Tensor,
    offsets: Tensor,
}

impl Samples {
    /// Samples of `rays` rays, of which some may have none.
    ///
    /// # Shapes
    /// `ray`: i64 `[samples]`, ascending and below `rays`; `start`, `end`: `[samples]` of one floating-point kind.
    /// # Errors
    /// [`Error::Shape`] for other sizes, kinds or rays.
    pub fn new(ray: Tensor, start: Tensor, end: Tensor, rays: i64) -> Result<Self> {
        check::shape("ray", &ray, &[None])?;
        check::kind("ray", &ray, Kind::Int64)?;
        let count = ray.size()[0];
        check::shape("start", &start, &[Some(count)])?;
        check::shape("end", &end, &[Some(count)])?;
        check::kind("end", &end, start.kind())?;
        if !start.is_floating_point() || !(0..i64::MAX).contains(&rays) {
            return Err(Error::Shape {
                what: "start".to_owned(),
                expected: "distances of a floating-point kind, along 0 rays or more".to_owned(),
                got: format!("{:?}, {rays} rays", start.kind()),
            });
        }
        let numbers = Tensor::arange(rays + 1, (Kind::Int64, ray.device()));
        let offsets = numbers.searchsorted(&ray, false, false, "left", None::<&Tensor>);
        let ascends = count == 0
            || (ray.narrow(0, 1, count - 1))
                .ge_tensor(&ray.narrow(0, 0, count - 1))
                .all()
                .int64_value(&[])
                == 1;
        let (first, all) = (offsets.int64_value(&[0]), offsets.int64_value(&[rays]));
        if !ascends || first != 0 || all != count {
            return Err(Error::Shape {
                what: "ray".to_owned(),
                expected: format!("ascending numbers below {rays}"),
                got: "others".to_owned(),
            });
        }
        Ok(Self {
            ray,
            start,
            end,
            offsets,
        })
    }

    /// Number of samples of all rays.
    pub fn count(&self) -> i64 {
        self.ray.size()[0]
    }

    /// Number of rays.
    pub fn rays(&self) -> i64 {
        self.offsets.size()[0] - 1
    }

    /// The ray of each sample: i64 `[samples]`.
    pub const fn ray(&self) -> &Tensor {
        &self.ray
    }

    /// Where each sample begins: `[samples]`.
    pub const fn start(&self) -> &Tensor {
        &self.start
    }

    /// Where each sample ends: `[samples]`.
    pub const fn end(&self) -> &Tensor {
        &self.end
    }

    /// Ray r has the samples from `offsets[r]` up to `offsets[r + 1]`: i64 `[rays + 1]`.
    pub const fn offsets(&self) -> &Tensor {
        &self.offsets
    }

    /// The middle of each sample: `[samples]`.
    pub fn middle(&self) -> Tensor {
        (&self.start + &self.end) / 2.0
    }

    /// Points in the middle of the samples, and the directions there: `[samples, 3]` each.
    ///
    /// # Errors
    /// [`Error::Shape`] when there are not as many rays.
    pub fn points(&self, rays: &Rays) -> Result<(Tensor, Tensor)> {
        check::shape("rays", rays.origins(), &[Some(self.rays()), Some(3)])?;
        let dirs = rays.dirs().index_select(0, &self.ray);
        let origins = rays.origins().index_select(0, &self.ray);
        Ok((origins + self.middle().unsqueeze(1) * &dirs, dirs))
    }

    /// The samples for which `mask`, bool `[samples]`, says true.
    ///
    /// # Errors
    /// [`Error::Shape`] for another mask.
    pub fn keep(&self, mask: &Tensor) -> Result<Self> {
        check::shape("mask", mask, &[Some(self.count())])?;
        check::kind("mask", mask, Kind::Bool)?;
        let places = mask.nonzero().squeeze_dim(1);
        let of = |xs: &Tensor| xs.index_select(0, &places);
        Self::new(of(&self.ray), of(&self.start), of(&self.end), self.rays())
    }

    /// Which samples are seen, bool `[samples]`: light of which at least `least_passing` is left (published: 1e-4) meets an opacity
    /// 1 - exp(-τ) of at least `least_alpha`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `sigma` is not `[samples]`.
    pub fn visible(&self, sigma: &Tensor, least_passing: f64, least_alpha: f64) -> Result<Tensor> {
        self.check("sigma", sigma, &[])?;
        let _no_grad = tch::no_grad_guard();
        if fused::enabled(sigma) {
            return ops::visible(sigma, self.pieces(), least_passing, least_alpha)
                .map_err(Error::torch);
        }
        let thickness = self.thickness(sigma);
        let before = self
            .padded(&thickness)
            .constant_pad_nd([1, -1])
            .cumsum(-1, None);
        let passing = (-self.unpadded(&before)).exp();
        let alpha = -(-thickness).expm1();
        Ok(passing
            .ge(least_passing)
            .logical_and(&alpha.ge(least_alpha)))
    }

    /// Renders the rays; those without samples see nothing. Differentiable once.
    ///
    /// # Shapes
    /// `sigma`: `[samples]`, not negative; `rgb`: `[samples, 3]`; lengths are those of directions of length 1.
    /// # Errors
    /// [`Error::Shape`] naming the tensor that does not fit.
    pub fn render(&self, sigma: &Tensor, rgb: &Tensor) -> Result<Rendered> {
        self.check("sigma", sigma, &[])?;
        self.check("rgb", rgb, &[Some(3)])?;
        // The operation has no gradient for distances.
        let seen =
            if fused::enabled(sigma) && !self.start.requires_grad() && !self.end.requires_grad() {
                let made = ops::render(sigma, rgb, self.pieces()).map_err(Error::torch)?;
                Rendered {
                    rgb: made.rgb,
                    weights: made.weights,
                    opacity: made.opacity,
                    depth: made.depth,
                }
            } else {
                self.render_plain(sigma, rgb)
            };
        let depth = mean_depth(&seen.depth, &seen.opacity);
        Ok(Rendered { depth, ..seen })
    }

    /// By operations of tensors: weights of rays padded to the longest, then sums by ray.
    fn render_plain(&self, sigma: &Tensor, rgb: &Tensor) -> Rendered {
        let weights = self.unpadded(&weights(&self.padded(&self.thickness(sigma))));
        let sum = |xs: &Tensor| {
            let mut size = xs.size();
            size[0] = self.rays();
            Tensor::zeros(size, (xs.kind(), xs.device())).index_add(0, &self.ray, xs)
        };
        Rendered {
            rgb: sum(&(weights.unsqueeze(1) * rgb)),
            opacity: sum(&weights),
            depth: sum(&(&weights * self.middle())),
            weights,
        }
    }

    fn thickness(&self, sigma: &Tensor) -> Tensor {
        sigma * (&self.end - &self.start)
    }

    /// Values `[samples]` as `[rays, most]`, with zeros behind the last of each ray.
    fn padded(&self, values: &Tensor) -> Tensor {
        let most = self.most();
        Tensor::zeros([self.rays() * most], (values.kind(), values.device()))
            .index_copy(0, &self.places(most), values)
            .view([self.rays(), most])
    }

    /// Back from [`padded`](Self::padded).
    fn unpadded(&self, rows: &Tensor) -> Tensor {
        rows.flatten(0, -1)
            .index_select(0, &self.places(self.most()))
    }

    /// Samples of the longest ray, at least 1.
    fn most(&self) -> i64 {
        if self.rays() == 0 {
            return 1;
        }
        let counts = self.offsets.diff(1, -1, None::<&Tensor>, None::<&Tensor>);
        counts.max().int64_value(&[]).max(1)
    }

    /// Places of the samples in rows of `most`.
    fn places(&self, most: i64) -> Tensor {
        let numbers = Tensor::arange(self.count(), (Kind::Int64, self.ray.device()));
        numbers - self.offsets.index_select(0, &self.ray) + &self.ray * most
    }

    fn pieces(&self) -> ops::Pieces<'_> {
        ops::Pieces {
            start: &self.start,
            end: &self.end,
            offsets: &self.offsets,
        }
    }

    fn check(&self, what: &str, xs: &Tensor, rest: &[Option<i64>]) -> Result<()> {
        let size: Vec<Option<i64>> = [Some(self.count())].iter().chain(rest).copied().collect();
        check::shape(what, xs, &size)?;
        check::kind(what, xs, self.start.kind())
    }
}
