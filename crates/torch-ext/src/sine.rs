//! Networks whose activation is the sine of their layers, as SIREN, FINER and the networks of FreSh, by tiles of rows that pass through all
//! layers in the processor's cache. For f32 on the CPU.
//!
//! Between forward and backward each layer keeps its `[rows, out]` argument and nothing else; sines, cosines and the inputs of the layers are
//! computed again where a tile needs them.

use tch::Tensor;

use crate::bridge::ffi;
use crate::trunk::{self, Linear};
use crate::{address, fused, owned};

/// Where a layer's frequency ω stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// sin(ω (W x + b)): SIREN.
    Classic,
    /// sin(W (ω x) + b): SIREN as FreSh has it.
    Input,
    /// sin(ω (|z| + 1) z) with z = W x + b, where |z| + 1 has no gradient: FINER.
    Finer,
}

/// A layer of such a network.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// `[out, in]`.
    pub weight: &'a Tensor,
    /// `[out]`.
    pub bias: &'a Tensor,
    /// Frequency.
    pub omega: f64,
}

/// A linear layer W (s x) + b behind the network.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// `[out, in]`.
    pub weight: &'a Tensor,
    /// `[out]`.
    pub bias: &'a Tensor,
    /// Multiplies its input: 1, but ω in FreSh's networks.
    pub scale: f64,
}

/// Whether [`layers`] may replace the plain chain for `xs` and such layers: f32 on the CPU without autocast, and nobody has switched the fast
/// paths off. Whoever wants second derivatives must, by [`PlainPaths`](fused::PlainPaths).
pub fn enabled(xs: &Tensor, layers: &[Layer], head: Option<Head>) -> bool {
    let parameters = layers.iter().flat_map(|layer| [layer.weight, layer.bias]);
    let head = head.into_iter().flat_map(|head| [head.weight, head.bias]);
    let all: Vec<&Tensor> = parameters.chain(head).chain([xs]).collect();
    fused::enabled_for_f32(&all)
}

/// One layer: as [`layers`].
///
/// # Errors
/// Those of [`layers`].
pub fn layer(xs: &Tensor, layer: Layer, form: Form) -> Result<Tensor, String> {
    layers(xs, &[layer], form, None)
}

/// All layers, and the head if there is one; differentiable once, by `xs` and all parameters. The forward pass has the same bits on any number
/// of threads, gradients for the same number.
///
/// Sines are within 1e-7 of the truth, of any argument.
/// # Shapes
/// `xs`: `[rows, in]` → `[rows, out]` of the last layer.
/// # Errors
/// A sentence that names the layer, when shapes or kinds do not fit.
pub fn layers(
    xs: &Tensor,
    layers: &[Layer],
    form: Form,
    head: Option<Head>,
) -> Result<Tensor, String> {
    let linear: Vec<Linear> = layers.iter().map(|one| [one.weight, one.bias]).collect();
    let behind = head.map(|head| [head.weight, head.bias]);
    trunk::check(xs, &linear, behind)?;
    let params: Vec<usize> = linear
        .iter()
        .chain(&behind)
        .flatten()
        .map(|xs| address(xs))
        .collect();
    let omegas: Vec<f64> = layers.iter().map(|layer| layer.omega).collect();
    let form = match form {
        Form::Classic => 0,
        Form::Input => 1,
        Form::Finer => 2,
    };
    let scale = head.map_or(1.0, |head| head.scale);
    // SAFETY: the addresses are those of tensors borrowed for the call.
    unsafe { owned(ffi::sine_layers(address(xs), &params, &omegas, form, scale)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trunk::trial::{Draw, Errors, run, steady};
    use tch::{Device, Kind};

    const FORMS: [Form; 3] = [Form::Classic, Form::Input, Form::Finer];

    /// Input, then weight and bias of each layer; of arguments near 1 at ω = 1.
    fn drawn(rows: i64, widths: &[i64], seed: u64) -> Vec<Tensor> {
        let mut draw = Draw(seed);
        let mut all = vec![draw.uniform(&[rows, widths[0]], 1.0)];
        for pair in widths.windows(2) {
            let scale = (pair[0] as f64).powf(-0.5);
            all.push(draw.normal(&[pair[1], pair[0]], scale));
            all.push(draw.normal(&[pair[1]], 0.3));
        }
        all
    }

    /// ω of the layers, the head's scale behind them if there is one.
    fn fused(all: &[Tensor], form: Form, omegas: &[f64], head: bool) -> Tensor {
        let made: Vec<Layer> = all[1..]
            .chunks(2)
            .zip(omegas)
            .map(|(own, omega)| Layer {
                weight: &own[0],
                bias: &own[1],
                omega: *omega,
            })
            .collect();
        let (own, last) = made.split_at(made.len() - usize::from(head));
        let head = last.first().map(|layer| Head {
            weight: layer.weight,
            bias: layer.bias,
            scale: layer.omega,
        });
        layers(&all[0], own, form, head).expect("the layers fit")
    }

    fn plain(all: &[Tensor], form: Form, omegas: &[f64], head: bool) -> Tensor {
        let own = omegas.len() - usize::from(head);
        let mut xs = all[0].shallow_clone();
        for (i, (params, omega)) in all[1..].chunks(2).zip(omegas).enumerate() {
            let linear = |xs: &Tensor| xs.matmul(&params[0].transpose(0, 1)) + &params[1];
            xs = match form {
                _ if i >= own => linear(&(&xs * *omega)),
                Form::Classic => (linear(&xs) * *omega).sin(),
                Form::Input => linear(&(&xs * *omega)).sin(),
                Form::Finer => {
                    let z = linear(&xs);
                    let factor = (z.abs() + 1.0).detach() * *omega;
                    (z * factor).sin()
                }
            };
        }
        xs
    }

    /// A network whose last layer is a head if it shall be.
    #[derive(Debug)]
    struct Trial<'a> {
        rows: i64,
        widths: &'a [i64],
        form: Form,
        omegas: &'a [f64],
        head: bool,
    }

    impl Trial<'_> {
        fn compare(&self, order: fn(Tensor) -> Tensor) {
            let Self {
                rows,
                widths,
                form,
                omegas,
                head,
            } = *self;
            let mut errors = Errors::default();
            for seed in 0..Errors::draws(&drawn(rows, widths, 0)) {
                let all: Vec<_> = drawn(rows, widths, seed).into_iter().map(order).collect();
                let doubles: Vec<_> = all.iter().map(|xs| xs.to_kind(Kind::Double)).collect();
                let outputs = widths[widths.len() - 1];
                let cotangent = Draw(99 + seed).normal(&[rows, outputs], 1.0);
                let chain = |xs: &[Tensor]| plain(xs, form, omegas, head);
                let ours = run(&all, Some(&cotangent), |xs| fused(xs, form, omegas, head));
                errors.add(
                    &ours,
                    &run(&all, Some(&cotangent), chain),
                    &run(&doubles, Some(&cotangent), chain),
                );
                // Without gradients nothing is kept, and the weights' forms are.
                let _no_grad = tch::no_grad_guard();
                for _ in 0..2 {
                    assert_eq!(fused(&all, form, omegas, head), ours[0]);
                }
            }
            errors.check(&format!("{self:?}"));
        }
    }

    fn compare(rows: i64, widths: &[i64], form: Form, omegas: &[f64], head: bool) {
        let trial = Trial {
            rows,
            widths,
            form,
            omegas,
            head,
        };
        trial.compare(|xs| xs);
    }

    #[test]
    fn layers_equal_the_plain_chain() {
        for form in FORMS {
            for rows in [1, 2, 7, 129, 1000] {
                compare(rows, &[3, 17], form, &[2.0], false);
                compare(rows, &[2, 64, 5, 1, 3], form, &[3.0, 2.0, 1.0, 1.5], true);
                compare(rows, &[17, 181, 181], form, &[1.0, 2.0], false);
                compare(rows, &[1, 1, 1], form, &[4.0, 1.0], true);
            }
            compare(700, &[2, 256, 256, 256, 256, 3], form, &[1.0; 5], true);
            compare(513, &[512, 256, 40], form, &[1.0; 2], true);
        }
    }

    #[test]
    fn arguments_of_hundreds_and_beyond_equal_the_plain_chain() {
        for form in FORMS {
            for omega in [300.0, 3000.0, 3e6] {
                compare(300, &[2, 40, 3], form, &[omega, 1.0], true);
            }
        }
    }

    #[test]
    fn no_rows_give_zero_gradients() {
        let all = drawn(0, &[2, 17, 3], 0);
        let cotangent = Tensor::zeros([0, 3], (Kind::Float, Device::Cpu));
        let found = run(&all, Some(&cotangent), |xs| {
            fused(xs, Form::Classic, &[1.0; 2], true)
        });
        assert_eq!(found[0].size(), [0, 3]);
        for (grad, xs) in found[1..].iter().zip(&all) {
            assert_eq!(*grad, xs.zeros_like());
        }
    }

    fn turned(xs: Tensor) -> Tensor {
        if xs.dim() == 2 {
            xs.transpose(0, 1).contiguous().transpose(0, 1)
        } else {
            xs
        }
    }

    #[test]
    fn inputs_may_lie_in_any_order() {
        let all: Vec<_> = drawn(65, &[3, 20, 33, 2], 0)
            .into_iter()
            .map(turned)
            .collect();
        assert!(!all[0].is_contiguous() && !all[3].is_contiguous());
        for form in FORMS {
            let trial = Trial {
                rows: 65,
                widths: &[3, 20, 33, 2],
                form,
                omegas: &[2.0, 1.0, 1.0],
                head: true,
            };
            trial.compare(turned);
        }
        // So may the gradient: that of a sum is one value, many times.
        let grads = |sum: fn(&Tensor) -> Tensor| {
            let leaves: Vec<_> = all
                .iter()
                .map(|xs| xs.copy().set_requires_grad(true))
                .collect();
            sum(&fused(&leaves, Form::Classic, &[2.0; 3], false)).backward();
            leaves.iter().map(Tensor::grad).collect::<Vec<_>>()
        };
        let spread = grads(|out| out.sum(Kind::Float));
        let full = grads(|out| (out * out.ones_like()).sum(Kind::Float));
        assert_eq!(spread, full);
    }

    /// sin and cos of f32 values, through a layer that changes nothing.
    fn sine_and_slope(values: &Tensor) -> [Tensor; 2] {
        let one = || Tensor::ones([1, 1], (Kind::Float, Device::Cpu));
        let xs = values.reshape([-1, 1]).set_requires_grad(true);
        let unchanged = Layer {
            weight: &one(),
            bias: &one().flatten(0, 1).zeros_like(),
            omega: 1.0,
        };
        let out = layer(&xs, unchanged, Form::Classic).expect("a layer");
        out.sum(Kind::Float).backward();
        [out.detach().flatten(0, 1), xs.grad().flatten(0, 1)]
    }

    #[test]
    fn sines_and_cosines_are_within_a_unit_of_the_truth_for_any_argument() {
        let kind = (Kind::Float, Device::Cpu);
        for largest in [0.5, 4.0, 100.0, 3000.0, 9.9e4, 2e5, 1e12, 1e38] {
            let values = Draw(2).uniform(&[100_000], largest);
            let [sine, cosine] = sine_and_slope(&values);
            let exact = values.to_kind(Kind::Double);
            for (found, exact) in [(sine, exact.sin()), (cosine, exact.cos())] {
                let away = (found.to_kind(Kind::Double) - exact)
                    .abs()
                    .max()
                    .double_value(&[]);
                assert!(away < 1e-7, "{away:e} from the truth at {largest:e}");
            }
        }
        // Near multiples of π / 2, where the reduced argument is what is left of large numbers.
        let near = (Tensor::arange(60_000, kind).to_kind(Kind::Double)
            * std::f64::consts::FRAC_PI_2)
            .to_kind(Kind::Float);
        let [sine, cosine] = sine_and_slope(&near);
        let exact = near.to_kind(Kind::Double);
        for (found, exact) in [(sine, exact.sin()), (cosine, exact.cos())] {
            let away = (found.to_kind(Kind::Double) - exact)
                .abs()
                .max()
                .double_value(&[]);
            assert!(away < 1e-7, "{away:e} from the truth");
        }
    }

    #[test]
    fn what_is_no_number_stays_none_and_spoils_no_other_row() {
        let mut values = vec![0.5_f32; 40];
        values[3] = f32::NAN;
        values[17] = f32::INFINITY;
        values[39] = f32::NEG_INFINITY;
        let [sine, cosine] = sine_and_slope(&Tensor::from_slice(&values));
        for (i, value) in values.iter().enumerate() {
            for found in [&sine, &cosine] {
                let found = found.double_value(&[i as i64]);
                assert_eq!(found.is_nan(), !value.is_finite(), "value {i}: {found}");
            }
        }
    }

    #[test]
    fn bits_are_the_same_every_time_and_forward_for_any_number_of_threads() {
        let all = drawn(5000, &[2, 48, 48, 3], 0);
        let cotangent = Draw(1).normal(&[5000, 3], 1.0);
        let first = steady(|| {
            run(&all, Some(&cotangent), |xs| {
                fused(xs, Form::Finer, &[5.0, 1.0, 1.0], true)
            })
        });
        // Alone, parts of the rows have the bits of the whole.
        let part: Vec<Tensor> = [all[0].narrow(0, 1234, 77)]
            .into_iter()
            .chain(all[1..].iter().map(Tensor::shallow_clone))
            .collect();
        let found = fused(&part, Form::Finer, &[5.0, 1.0, 1.0], true);
        assert_eq!(found, first[0].narrow(0, 1234, 77));
    }

    #[test]
    fn predictions_follow_the_weights() {
        let _no_grad = tch::no_grad_guard();
        let mut all = drawn(3, &[2, 5, 2], 0);
        let before = fused(&all, Form::Classic, &[1.0; 2], true);
        let _ = all[1].g_mul_scalar_(2.0);
        let after = fused(&all, Form::Classic, &[1.0; 2], true);
        assert_ne!(before, after);
        let away = (plain(&all, Form::Classic, &[1.0; 2], true) - after)
            .abs()
            .max();
        assert!(away.double_value(&[]) < 1e-6);
    }

    #[test]
    fn second_derivatives_are_refused() {
        let all = drawn(4, &[2, 5, 1], 0);
        let leaves: Vec<_> = all
            .iter()
            .map(|xs| xs.copy().set_requires_grad(true))
            .collect();
        let out = fused(&leaves, Form::Classic, &[1.0; 2], true).sum(Kind::Float);
        let error = Tensor::f_run_backward(&[out], &leaves[..1], true, true).expect_err("twice");
        assert!(
            error.to_string().contains("no second derivatives"),
            "{error}"
        );
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let all = drawn(4, &[2, 5, 1], 0);
        let of = |i: usize| Layer {
            weight: &all[1 + 2 * i],
            bias: &all[2 + 2 * i],
            omega: 1.0,
        };
        let says = |xs: &Tensor, own: &[Layer], text: &str| {
            let error = layers(xs, own, Form::Classic, None).expect_err("it does not fit");
            assert!(error.contains(text), "{error}");
        };
        says(
            &all[0],
            &[of(1)],
            "layer 0: the weight is [1, 5], expected [out, 2]",
        );
        says(
            &all[0],
            &[of(0), of(0)],
            "layer 1: the weight is [5, 2], expected [out, 5]",
        );
        says(&all[0].flatten(0, 1), &[of(0)], "expected [rows, in]");
        says(
            &all[0].to_kind(Kind::Double),
            &[of(0)],
            "Double on Cpu, expected Float",
        );
        says(&all[0], &[], "no layers");
        let short = Layer {
            bias: &all[4],
            ..of(0)
        };
        says(&all[0], &[short], "layer 0: the bias is [1], expected [5]");
        let head = Head {
            weight: &all[1],
            bias: &all[2],
            scale: 1.0,
        };
        let error = layers(&all[0], &[of(0)], Form::Input, Some(head)).expect_err("a head");
        assert!(error.contains("the head: the weight is [5, 2]"), "{error}");
    }

    #[test]
    fn only_f32_on_the_cpu_is_taken() {
        let all = drawn(4, &[2, 5], 0);
        let of = |weight| Layer {
            weight,
            bias: &all[2],
            omega: 1.0,
        };
        let double = all[1].to_kind(Kind::Double);
        assert!(enabled(&all[0], &[of(&all[1])], None));
        assert!(!enabled(&all[0], &[of(&double)], None));
        assert!(!enabled(&all[0].to_kind(Kind::Half), &[of(&all[1])], None));
        let _plain = fused::PlainPaths::new();
        assert!(!enabled(&all[0], &[of(&all[1])], None));
    }
}
