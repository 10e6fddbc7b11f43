//! Networks whose features are normed and then modulated by the point's coordinates, as CAM's for images, by tiles of rows that pass through
//! all layers in the processor's cache. For f32 on the CPU.
//!
//! Between forward and backward each layer keeps its `[rows, out]` normed features and one number for each row; what follows from them is
//! computed again where a tile needs it.

use tch::Tensor;

use crate::bridge::ffi;
use crate::trunk::{self, Linear};
use crate::{address, fused, owned};

/// γ(c) · norm(W x + b) + β(c).
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// `[out, in]`.
    pub weight: &'a Tensor,
    /// `[out]`.
    pub bias: &'a Tensor,
    /// γ and β, `[1, 2, height, width]`.
    pub grid: &'a Tensor,
}

/// What all layers of a network have in common.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// Added to the variance.
    pub eps: f64,
    /// Whether a ReLU follows the modulation.
    pub relu: bool,
}

/// Whether [`layers`] may replace the plain chain: f32 on the CPU without autocast, coordinates that need no gradient, and nobody has switched
/// the fast paths off. Whoever wants second derivatives must, by [`PlainPaths`](fused::PlainPaths).
pub fn enabled(xs: &Tensor, coords: &Tensor, layers: &[Layer], head: Option<[&Tensor; 2]>) -> bool {
    let parameters = layers
        .iter()
        .flat_map(|one| [one.weight, one.bias, one.grid]);
    let all: Vec<&Tensor> = parameters
        .chain(head.into_iter().flatten())
        .chain([xs, coords])
        .collect();
    fused::enabled_for_f32(&all) && !(fused::records_gradients() && coords.requires_grad())
}

/// One layer: as [`layers`].
///
/// # Errors
/// Those of [`layers`].
pub fn layer(xs: &Tensor, coords: &Tensor, layer: Layer, form: Form) -> Result<Tensor, String> {
    layers(xs, coords, &[layer], form, None)
}

/// All layers, and a linear one behind them if there is a `head`; differentiable once, by `xs` and all parameters. The forward pass has the
/// same bits on any number of threads, gradients for the same number.
///
/// The norm of a row is over its features: mean 0, variance 1 (biased). γ and β are interpolated linearly as `grid_sample` does with aligned
/// corners and border padding: the first coordinate runs along the grid's last axis (the parameter's columns), the second along the one before.
/// # Shapes
/// `xs`: `[rows, in]`; `coords`: `[rows, 2]` in [-1, 1] → `[rows, out]` of the last layer.
/// # Errors
/// A sentence that names the layer, when shapes or kinds do not fit, or coordinates need a gradient.
pub fn layers(
    xs: &Tensor,
    coords: &Tensor,
    layers: &[Layer],
    form: Form,
    head: Option<[&Tensor; 2]>,
) -> Result<Tensor, String> {
    let linear: Vec<Linear> = layers.iter().map(|one| [one.weight, one.bias]).collect();
    trunk::check(xs, &linear, head)?;
    trunk::plain(coords, "the coordinates")?;
    if coords.size() != [xs.size()[0], 2] {
        return Err(format!(
            "the coordinates are {:?}, expected [{}, 2]",
            coords.size(),
            xs.size()[0]
        ));
    }
    if fused::records_gradients() && coords.requires_grad() {
        return Err("the coordinates need a gradient, which fused layers do not give".to_owned());
    }
    for (i, Layer { grid, .. }) in layers.iter().enumerate() {
        trunk::plain(grid, &format!("layer {i}"))?;
        let size = grid.size();
        // Places along an axis are counted in f32, which has no whole numbers beyond 2²⁴.
        let most = 1 << 24;
        if size.len() != 4
            || size[..2] != [1, 2]
            || size[2..].iter().any(|axis| !(1..=most).contains(axis))
        {
            return Err(format!(
                "layer {i}: the grid is {size:?}, expected [1, 2, height, width] with sides from 1 to {most}"
            ));
        }
    }
    let own = layers
        .iter()
        .flat_map(|one| [one.weight, one.bias, one.grid]);
    let params: Vec<usize> = own.chain(head.into_iter().flatten()).map(address).collect();
    // SAFETY: the addresses are those of tensors borrowed for the call.
    unsafe {
        owned(ffi::modulated_layers(
            address(xs),
            address(coords),
            &params,
            layers.len() as i64,
            form.eps,
            form.relu,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trunk::trial::{Draw, Errors, run, steady};
    use tch::{Device, Kind};

    const KIND: (Kind, Device) = (Kind::Float, Device::Cpu);
    const FORM: Form = Form {
        eps: 1e-5,
        relu: true,
    };

    /// Input, then weight, bias and grid of each layer, then weight and bias of a head.
    fn drawn(
        rows: i64,
        widths: &[i64],
        grid: [i64; 2],
        head: Option<i64>,
        seed: u64,
    ) -> Vec<Tensor> {
        let mut draw = Draw(seed);
        let mut all = vec![draw.normal(&[rows, widths[0]], 1.0)];
        for pair in widths.windows(2) {
            let scale = (pair[0] as f64).powf(-0.5);
            all.push(draw.normal(&[pair[1], pair[0]], scale));
            all.push(draw.normal(&[pair[1]], 0.5));
            all.push(draw.normal(&[1, 2, grid[0], grid[1]], 1.0));
        }
        if let Some(outputs) = head {
            let width = widths[widths.len() - 1];
            all.push(draw.normal(&[outputs, width], (width as f64).powf(-0.5)));
            all.push(draw.normal(&[outputs], 1.0));
        }
        all
    }

    /// Some of them on the border, on the grid's values and beyond it.
    fn places(rows: i64) -> Tensor {
        let coords = Draw(5).uniform(&[rows, 2], 1.2);
        let some = [-1.0, 1.0, 0.0, 0.5, -2.0, 3.0];
        for (i, value) in some.iter().enumerate().take(rows as usize) {
            let _ = coords
                .get(i as i64)
                .narrow(0, i as i64 % 2, 1)
                .fill_(*value);
        }
        coords
    }

    fn fused(all: &[Tensor], coords: &Tensor, form: Form) -> Tensor {
        let (own, last) = all[1..].split_at((all.len() - 1) / 3 * 3);
        let made: Vec<Layer> = own
            .chunks(3)
            .map(|own| Layer {
                weight: &own[0],
                bias: &own[1],
                grid: &own[2],
            })
            .collect();
        let head = (!last.is_empty()).then(|| [&last[0], &last[1]]);
        layers(&all[0], coords, &made, form, head).expect("the layers fit")
    }

    fn plain(all: &[Tensor], coords: &Tensor, form: Form) -> Tensor {
        let (own, last) = all[1..].split_at((all.len() - 1) / 3 * 3);
        let linear =
            |xs: &Tensor, params: &[Tensor]| xs.matmul(&params[0].transpose(0, 1)) + &params[1];
        let mut xs = all[0].shallow_clone();
        for params in own.chunks(3) {
            let z = linear(&xs, params);
            let width = z.size()[1];
            let normed = z.layer_norm([width], None::<Tensor>, None::<Tensor>, form.eps, false);
            let places = coords.to_kind(z.kind()).reshape([1, 1, -1, 2]);
            // bilinear, border padding, aligned corners
            let found = params[2]
                .grid_sampler_2d(&places, 0, 1, true)
                .squeeze_dim(2);
            let of = |channel| found.get(0).get(channel).unsqueeze(1);
            xs = of(0) * normed + of(1);
            if form.relu {
                xs = xs.relu();
            }
        }
        if last.is_empty() {
            xs
        } else {
            linear(&xs, last)
        }
    }

    fn compare(draw: impl Fn(u64) -> Vec<Tensor>, form: Form) {
        let mut errors = Errors::default();
        let first = draw(0);
        let rows = first[0].size()[0];
        for seed in 0..Errors::draws(&first) {
            let all = draw(seed);
            let doubles: Vec<_> = all.iter().map(|xs| xs.to_kind(Kind::Double)).collect();
            let coords = places(rows);
            let cotangent = Draw(99 + seed).normal(&fused(&all, &coords, form).size(), 1.0);
            let chain = |xs: &[Tensor]| plain(xs, &coords, form);
            let ours = run(&all, Some(&cotangent), |xs| fused(xs, &coords, form));
            errors.add(
                &ours,
                &run(&all, Some(&cotangent), chain),
                &run(&doubles, Some(&cotangent), chain),
            );
            let _no_grad = tch::no_grad_guard();
            assert_eq!(fused(&all, &coords, form), ours[0]);
        }
        let sizes: Vec<_> = first.iter().map(Tensor::size).collect();
        errors.check(&format!("{form:?} {sizes:?}"));
    }

    #[test]
    fn layers_equal_norm_and_grid_sample() {
        // Few values with the ReLU: in many there is one so near 0 that rounding decides whether it is above.
        let form = Form {
            relu: false,
            ..FORM
        };
        for (form, counts) in [(FORM, &[1, 2, 7, 30][..]), (form, &[1, 2, 129, 1000])] {
            for rows in counts.iter().copied() {
                compare(|seed| drawn(rows, &[3, 17], [4, 7], None, seed), form);
                compare(
                    |seed| drawn(rows, &[20, 64, 33, 5], [5, 2], Some(3), seed),
                    form,
                );
                compare(
                    |seed| drawn(rows, &[17, 181, 181], [1, 9], Some(1), seed),
                    form,
                );
                compare(|seed| drawn(rows, &[2, 48, 31], [32, 32], None, seed), form);
            }
        }
        let large = |seed| drawn(700, &[512, 256, 256, 256], [32, 32], Some(3), seed);
        compare(large, form);
    }

    #[test]
    fn a_single_feature_is_its_shift() {
        let form = Form {
            relu: false,
            ..FORM
        };
        compare(|seed| drawn(9, &[3, 1], [3, 3], None, seed), form);
    }

    #[test]
    fn columns_of_the_grid_run_along_the_first_coordinate() {
        let all = drawn(1, &[2, 6], [2, 3], None, 0);
        let grid = Tensor::zeros([1, 2, 2, 3], KIND);
        let _ = grid.get(0).get(1).get(0).narrow(0, 2, 1).fill_(5.0); // the shift of row 0, column 2
        let params = [&all[0], &all[1], &all[2], &grid].map(Tensor::shallow_clone);
        let at = |place: [f32; 2]| {
            let coords = Tensor::from_slice(&place).reshape([1, 2]);
            fused(&params, &coords, FORM)
                .mean(Kind::Double)
                .double_value(&[])
        };
        assert_eq!(at([1.0, -1.0]), 5.0);
        assert_eq!(at([-1.0, 1.0]), 0.0);
        assert_eq!(at([0.5, -1.0]), 2.5);
        assert_eq!(at([1.0, 0.5]), 1.25);
    }

    #[test]
    fn no_rows_give_zero_gradients() {
        let all = drawn(0, &[2, 17], [3, 4], Some(2), 0);
        let cotangent = Tensor::zeros([0, 2], KIND);
        let coords = Tensor::zeros([0, 2], KIND);
        let found = run(&all, Some(&cotangent), |xs| fused(xs, &coords, FORM));
        assert_eq!(found[0].size(), [0, 2]);
        for (grad, xs) in found[1..].iter().zip(&all) {
            assert_eq!(*grad, xs.zeros_like());
        }
    }

    #[test]
    fn bits_are_the_same_every_time_and_forward_for_any_number_of_threads() {
        let all = drawn(3000, &[20, 48, 48], [8, 8], Some(3), 0);
        let (coords, cotangent) = (places(3000), Draw(1).normal(&[3000, 3], 1.0));
        steady(|| run(&all, Some(&cotangent), |xs| fused(xs, &coords, FORM)));
    }

    #[test]
    fn inputs_may_lie_in_any_order() {
        let turned = |xs: &Tensor| {
            if xs.dim() == 2 {
                xs.transpose(0, 1).contiguous().transpose(0, 1)
            } else {
                xs.shallow_clone()
            }
        };
        let draw = |seed| drawn(65, &[3, 20, 33], [4, 4], Some(2), seed);
        let draw = |seed| draw(seed).iter().map(turned).collect::<Vec<_>>();
        let all = draw(0);
        assert!(!all[0].is_contiguous() && !all[4].is_contiguous());
        compare(draw, FORM);
        let coords = places(65);
        assert_eq!(
            fused(&all, &turned(&coords), FORM),
            fused(&all, &coords, FORM)
        );
    }

    #[test]
    fn coordinates_that_are_no_numbers_spoil_only_their_row() {
        let all = drawn(20, &[2, 5], [3, 3], None, 0);
        let coords = places(20);
        let before = fused(&all, &coords, FORM);
        let _ = coords.get(7).fill_(f64::NAN);
        let after = fused(&all, &coords, FORM);
        for row in (0..20).filter(|row| *row != 7) {
            assert_eq!(before.get(row), after.get(row));
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        fn of<'a>(all: &'a [Tensor], grid: &'a Tensor) -> Layer<'a> {
            Layer {
                weight: &all[1],
                bias: &all[2],
                grid,
            }
        }
        let all = drawn(4, &[2, 5], [3, 3], None, 0);
        let says = |coords: &Tensor, grid: &Tensor, text: &str| {
            let error = layer(&all[0], coords, of(&all, grid), FORM).expect_err("it does not fit");
            assert!(error.contains(text), "{error}");
        };
        let coords = places(4);
        says(
            &coords.narrow(0, 0, 3),
            &all[3],
            "the coordinates are [3, 2], expected [4, 2]",
        );
        says(
            &coords,
            &all[3].squeeze_dim(0),
            "expected [1, 2, height, width]",
        );
        says(
            &coords.to_kind(Kind::Double),
            &all[3],
            "the coordinates: Double",
        );
        let wanted = coords.copy().set_requires_grad(true);
        says(&wanted, &all[3], "the coordinates need a gradient");
        assert!(!enabled(&all[0], &wanted, &[of(&all, &all[3])], None));
        assert!(enabled(&all[0], &coords, &[of(&all, &all[3])], None));
    }
}
