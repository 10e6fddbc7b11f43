//! What the doors of fused networks have in common.

use tch::{Device, Kind, Tensor};

/// A layer's weight `[out, in]` and bias `[out]`.
pub(crate) type Linear<'a> = [&'a Tensor; 2];

/// Whether each layer takes what the one before it gives, all in f32 on the CPU; `xs`: `[rows, in]`. The last one may be a head.
pub(crate) fn check(xs: &Tensor, layers: &[Linear], head: Option<Linear>) -> Result<(), String> {
    plain(xs, "the input")?;
    let &[_, mut width] = xs.size().as_slice() else {
        return Err(format!("the input is {:?}, expected [rows, in]", xs.size()));
    };
    if layers.is_empty() {
        return Err("there are no layers".to_owned());
    }
    let names = (0..layers.len()).map(|i| format!("layer {i}"));
    let all = names.zip(layers.iter().copied());
    for (name, [weight, bias]) in all.chain(head.map(|head| ("the head".to_owned(), head))) {
        for one in [weight, bias] {
            plain(one, &name)?;
        }
        let size = weight.size();
        if size.len() != 2 || size[1] != width || size.contains(&0) {
            return Err(format!(
                "{name}: the weight is {size:?}, expected [out, {width}]"
            ));
        }
        width = size[0];
        if bias.size() != [width] {
            return Err(format!(
                "{name}: the bias is {:?}, expected [{width}]",
                bias.size()
            ));
        }
    }
    Ok(())
}

/// Whether `xs` is f32 on the CPU.
pub(crate) fn plain(xs: &Tensor, name: &str) -> Result<(), String> {
    let (kind, device) = (xs.kind(), xs.device());
    if kind == Kind::Float && device == Device::Cpu {
        return Ok(());
    }
    Err(format!(
        "{name}: {kind:?} on {device:?}, expected Float on the CPU"
    ))
}

#[cfg(test)]
pub(crate) mod trial {
    //! A fused function against the plain chain, in f32 and f64.

    use tch::{Kind, Tensor};

    /// Numbers of one's own, since other tests draw from libtorch's generator at the same time.
    #[derive(Debug)]
    pub(crate) struct Draw(pub(crate) u64);

    impl Draw {
        /// In [0, 1).
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        }

        fn fill(&mut self, size: &[i64], value: impl Fn(&mut Self) -> f64) -> Tensor {
            let values: Vec<f32> = (0..size.iter().product())
                .map(|_: i64| value(self) as f32)
                .collect();
            Tensor::from_slice(&values).reshape(size)
        }

        /// Between -`most` and `most`.
        pub(crate) fn uniform(&mut self, size: &[i64], most: f64) -> Tensor {
            self.fill(size, |own| (2.0 * own.next() - 1.0) * most)
        }

        /// Normal.
        pub(crate) fn normal(&mut self, size: &[i64], deviation: f64) -> Tensor {
            self.fill(size, |own| {
                let radius = (-2.0 * (1.0 - own.next()).ln()).sqrt();
                radius * (std::f64::consts::TAU * own.next()).cos() * deviation
            })
        }
    }

    /// f(inputs) and what comes back to each input from `cotangent`.
    pub(crate) fn run(
        inputs: &[Tensor],
        cotangent: Option<&Tensor>,
        f: impl Fn(&[Tensor]) -> Tensor,
    ) -> Vec<Tensor> {
        let leaves: Vec<Tensor> = inputs
            .iter()
            .map(|xs| xs.detach().copy().set_requires_grad(true))
            .collect();
        // Their strides are those of the inputs.
        let views: Vec<Tensor> = leaves
            .iter()
            .zip(inputs)
            .map(|(leaf, xs)| {
                let turned = xs.dim() == 2 && !xs.is_contiguous();
                if turned {
                    leaf.transpose(0, 1).contiguous().transpose(0, 1)
                } else {
                    leaf.shallow_clone()
                }
            })
            .collect();
        let out = f(&views);
        let mut found = vec![out.detach()];
        if let Some(cotangent) = cotangent {
            (&out * cotangent.to_kind(out.kind()))
                .sum(out.kind())
                .backward();
            found.extend(leaves.iter().map(Tensor::grad));
        }
        found
    }

    /// Whether results have the same bits at a second call and, the first of them, with one thread; gives them.
    pub(crate) fn steady(once: impl Fn() -> Vec<Tensor>) -> Vec<Tensor> {
        let first = once();
        assert_eq!(once(), first);
        let threads = tch::get_num_threads();
        tch::set_num_threads(1);
        let alone = once();
        tch::set_num_threads(threads);
        assert_eq!(alone[0], first[0]);
        first
    }

    /// How far the fused way is from the truth, over how far the chain is: for each tensor the logarithms' sum, over draws.
    ///
    /// In the geometric mean, since a draw on which all of rounding is magnified is so for both.
    #[derive(Debug, Default)]
    pub(crate) struct Errors {
        logs: Vec<f64>,
        draws: i32,
    }

    impl Errors {
        /// Draws that tell the ways apart: 200 errors at least, of the tensor with the fewest values.
        pub(crate) fn draws(tensors: &[Tensor]) -> u64 {
            let fewest = tensors.iter().map(Tensor::numel).min();
            (200 / fewest.unwrap_or(1).max(1)).max(6) as u64
        }

        /// Of the same inputs, the fused way's results, those of the chain, and those of the chain in f64.
        pub(crate) fn add(&mut self, fused: &[Tensor], chain: &[Tensor], exact: &[Tensor]) {
            assert_eq!(fused.len(), exact.len());
            self.logs.resize(exact.len(), 0.0);
            self.draws += 1;
            for ((log, exact), both) in self.logs.iter_mut().zip(exact).zip(fused.iter().zip(chain))
            {
                let norm = |xs: &Tensor| xs.square().sum(Kind::Double).sqrt().double_value(&[]);
                let [ours, theirs] = [both.0, both.1].map(|found| {
                    assert_eq!(found.size(), exact.size());
                    norm(&(found.to_kind(Kind::Double) - exact))
                });
                // Half a unit in the last place, which rounding the exact value takes: what is nearer than that is as good as it can be, by
                // luck or by the many partial sums that some processors' products of a single row have.
                let least = 0.5 * f64::from(f32::EPSILON) * norm(exact) + f64::MIN_POSITIVE;
                *log += ((ours + least) / (theirs + least)).ln();
            }
        }

        /// Whether the fused way is within twice the chain's error.
        pub(crate) fn check(&self, what: &str) {
            for (i, log) in self.logs.iter().enumerate() {
                let ratio = (log / f64::from(self.draws)).exp();
                assert!(
                    ratio <= 2.0,
                    "{what}, tensor {i}: {ratio} of the plain chain's error"
                );
            }
        }
    }
}
