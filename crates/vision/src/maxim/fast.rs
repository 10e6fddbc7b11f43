//! MAXIM without gradients, on maps `[batch, height, width, channels]`: what happens to the channels of single pixels is one pass over a map from
//! one mixing of pixels to the next, and mixings leave the map as it lies.

use densely_core::nn::{Conv, LayerNorm, Linear, channels_last};
use densely_core::{Error, Result};
use densely_torch_ext::pixels::{self, Chain, Rows};
use tch::Tensor;
use tch::nn::Module;

use super::{
    Body, ChannelAttention, CrossGate, Gate, Gmlp, Half, Handed, LEVELS, MaximConfig, Mixing,
    Output, Rcab, Rdcab, Resize, Sam, Stage, Up, first, last,
};

/// Whether it applies to an image.
pub(super) fn applies(config: &MaximConfig, image: &Tensor) -> bool {
    config.features % 16 == 0 && pixels::enabled(image)
}

fn convolved(conv: &Conv, xs: &Tensor) -> Tensor {
    last(&conv.forward(&first(xs))).contiguous()
}

fn dense(chain: &mut Chain, rows: Rows, layer: &Linear) -> Rows {
    chain.layer(rows, &layer.weight, layer.bias.as_ref())
}

fn pointwise(chain: &mut Chain, rows: Rows, conv: &Conv) -> Rows {
    chain.layer(rows, &conv.weight, conv.bias.as_ref())
}

fn normed(chain: &mut Chain, rows: Rows, norm: &LayerNorm) -> Rows {
    chain.norm(rows, &norm.weight, &norm.bias, norm.eps)
}

fn loaded(chain: &mut Chain, map: &Tensor) -> Rows {
    chain.load(map, map.size()[3])
}

fn run<const N: usize>(chain: &Chain) -> Result<[Tensor; N]> {
    let maps = chain.run().map_err(Error::torch)?;
    let count = maps.len();
    maps.try_into()
        .map_err(|_| Error::torch(format!("{count} maps where {N} were stored")))
}

fn beside(rows: Rows, next: Rows) -> Result<Rows> {
    rows.beside(next).map_err(Error::torch)
}

/// A map, and the layer that it passes before it stands beside others.
type Signal<'a> = (&'a Tensor, Option<&'a Conv>);

/// All signals side by side.
fn entered(chain: &mut Chain, signals: &[Signal]) -> Result<Rows> {
    // What has a layer is read first: rows that are one must be made one after another.
    let read: Vec<Option<Rows>> = signals
        .iter()
        .map(|(map, layer)| layer.is_some().then(|| loaded(chain, map)))
        .collect();
    let mut joined: Option<Rows> = None;
    for ((map, layer), rows) in signals.iter().zip(read) {
        let rows = match (layer, rows) {
            (Some(layer), Some(rows)) => pointwise(chain, rows, layer),
            _ => loaded(chain, map),
        };
        joined = Some(match joined {
            Some(before) => beside(before, rows)?,
            None => rows,
        });
    }
    joined.ok_or_else(|| Error::torch("nothing to put side by side"))
}

impl Up {
    fn raise(&self, xs: &Tensor) -> Result<Tensor> {
        let (size, width) = (xs.size(), self.weight.size()[1]);
        let weight = self.weight.permute([2, 3, 1, 0]).reshape([4 * width, -1]);
        let bias = self.bias.repeat([4]);
        let mut chain = Chain::new(xs);
        let rows = loaded(&mut chain, xs);
        let rows = chain.layer(rows, &weight, Some(&bias));
        chain.store(rows);
        let [ys] = run(&chain)?;
        let [batch, height, wide] = [size[0], size[1], size[2]];
        Ok(ys
            .view([batch, height, wide, 2, 2, width])
            .permute([0, 1, 3, 2, 4, 5])
            .reshape([batch, 2 * height, 2 * wide, width]))
    }
}

impl Gmlp {
    /// The gated mixture of what [`Mixing::mixed`] made.
    fn mixed(&self, [gate, v]: [&Tensor; 2], side: i64) -> Result<Tensor> {
        let mix = pixels::Mix {
            weight: &self.mix.weight,
            bias: self.mix.bias.as_ref(),
            norm: Some((
                &self.inner_norm.weight,
                &self.inner_norm.bias,
                self.inner_norm.eps,
            )),
            side,
            grid: self.axis == super::Axis::Grid,
        };
        mix.apply(v, Some(gate)).map_err(Error::torch)
    }
}

impl Mixing {
    /// What comes out, and behind it in the same pass what `then` makes of it.
    fn mixed<const N: usize>(
        &self,
        xs: &Tensor,
        then: impl FnOnce(&mut Chain, Rows),
    ) -> Result<[Tensor; N]> {
        let mut chain = Chain::new(xs);
        let rows = loaded(&mut chain, xs);
        let rows = normed(&mut chain, rows, &self.norm);
        let rows = dense(&mut chain, rows, &self.input);
        chain.gelu(rows);
        for (half, gmlp) in rows.halves().into_iter().zip([&self.grid, &self.block]) {
            chain.store(half);
            let rows = normed(&mut chain, half, &gmlp.norm);
            let rows = dense(&mut chain, rows, &gmlp.input);
            chain.gelu(rows);
            for part in rows.halves() {
                chain.store(part);
            }
        }
        let [grid, gate, v, block, other_gate, other] = run(&chain)?;
        drop(chain);
        let by_grid = self.grid.mixed([&gate, &v], self.side)?;
        drop((gate, v));
        let by_block = self.block.mixed([&other_gate, &other], self.side)?;
        drop((other_gate, other));

        let mut chain = Chain::new(xs);
        let mixed = [&by_grid, &by_block].map(|map| loaded(&mut chain, map));
        let ys = [
            dense(&mut chain, mixed[0], &self.grid.output),
            dense(&mut chain, mixed[1], &self.block.output),
        ];
        let long = [&grid, &block].map(|map| loaded(&mut chain, map));
        let ys = beside(ys[0], ys[1])?;
        chain.add(ys, beside(long[0], long[1])?);
        let ys = dense(&mut chain, ys, &self.output);
        let xs = loaded(&mut chain, xs);
        chain.add(ys, xs);
        chain.store(ys);
        then(&mut chain, ys);
        run(&chain)
    }
}

impl ChannelAttention {
    /// `xs` and `ys` weighted.
    fn added(&self, xs: &Tensor, ys: &Tensor) -> Tensor {
        let mean = first(&ys.mean_dim([1i64, 2].as_slice(), true, None));
        let weights = self.excite.forward(&self.squeeze.forward(&mean).relu());
        xs.addcmul(ys, &last(&weights.sigmoid()))
    }
}

/// What follows a mixing in a body.
pub(super) trait Attention {
    fn attended(&self, mixing: &Mixing, xs: &Tensor) -> Result<Tensor>;
}

impl Attention for Rcab {
    fn attended(&self, mixing: &Mixing, xs: &Tensor) -> Result<Tensor> {
        let [xs, ys] = mixing.mixed(xs, |chain, rows| {
            let rows = normed(chain, rows, &self.norm);
            chain.store(rows);
        })?;
        let mut ys = convolved(&self.first, &ys);
        // leaky ReLU with slope 0.2
        let scaled = &ys * 0.2;
        let _ = ys.f_clamp_min_tensor_(&scaled)?;
        let ys = convolved(&self.second, &ys);
        Ok(self.attention.added(&xs, &ys))
    }
}

impl Attention for Rdcab {
    fn attended(&self, mixing: &Mixing, xs: &Tensor) -> Result<Tensor> {
        let [xs, ys] = mixing.mixed(xs, |chain, rows| {
            let rows = normed(chain, rows, &self.norm);
            let rows = dense(chain, rows, &self.first);
            chain.gelu(rows);
            let rows = dense(chain, rows, &self.second);
            chain.store(rows);
        })?;
        Ok(self.attention.added(&xs, &ys))
    }
}

impl<A: Attention> Body<A> {
    fn passed(&self, signals: &[Signal]) -> Result<Tensor> {
        let mut chain = Chain::new(signals[0].0);
        let rows = entered(&mut chain, signals)?;
        let rows = pointwise(&mut chain, rows, &self.input);
        chain.store(rows);
        let [long] = run(&chain)?;
        let mut groups = self.groups.iter();
        let deep = groups.try_fold(long.shallow_clone(), |xs, (mixing, attention)| {
            attention.attended(mixing, &xs)
        })?;
        Ok(deep + long)
    }
}

impl Gate {
    fn mixed(&self, maps: [&Tensor; 2]) -> Result<[Tensor; 2]> {
        let mix = |layer: &Linear, grid: bool, map: &Tensor| {
            let mix = pixels::Mix {
                weight: &layer.weight,
                bias: layer.bias.as_ref(),
                norm: None,
                side: self.side,
                grid,
            };
            mix.apply(map, None).map_err(Error::torch)
        };
        Ok([
            mix(&self.grid, true, maps[0])?,
            mix(&self.block, false, maps[1])?,
        ])
    }
}

/// A signal of a cross gate: as it came, behind its first layers, and its gate mixed over cells and blocks.
struct Gated {
    long: Tensor,
    xs: Tensor,
    mixed: [Tensor; 2],
}

impl Half {
    fn gated(&self, signals: &[Signal]) -> Result<Gated> {
        let mut chain = Chain::new(signals[0].0);
        let rows = entered(&mut chain, signals)?;
        let long = pointwise(&mut chain, rows, &self.conv);
        chain.store(long);
        let rows = normed(&mut chain, long, &self.norm);
        let rows = dense(&mut chain, rows, &self.input);
        chain.gelu(rows);
        chain.store(rows);
        let rows = normed(&mut chain, rows, &self.gate.norm);
        let rows = dense(&mut chain, rows, &self.gate.input);
        chain.gelu(rows);
        for half in rows.halves() {
            chain.store(half);
        }
        let [long, xs, u, v] = run(&chain)?;
        let mixed = self.gate.mixed([&u, &v])?;
        Ok(Gated { long, xs, mixed })
    }
}

impl CrossGate {
    fn crossed(&self, xs: &[Signal], ys: &Tensor) -> Result<[Tensor; 2]> {
        let raised = self.up.as_ref().map(|up| up.raise(ys)).transpose()?;
        let x = self.x.gated(xs)?;
        let y = self.y.gated(&[(raised.as_ref().unwrap_or(ys), None)])?;
        let mut chain = Chain::new(&x.long);
        let mut gate = |half: &Half, of: &Gated| {
            let maps = of.mixed.each_ref().map(|map| loaded(&mut chain, map));
            Ok(dense(
                &mut chain,
                beside(maps[0], maps[1])?,
                &half.gate.output,
            ))
        };
        let of_x = gate(&self.x, &x)?;
        let of_y: Result<Rows> = gate(&self.y, &y);
        let of_y = of_y?;
        let mut out = |half: &Half, of: &Gated, gate: Rows| {
            let rows = loaded(&mut chain, &of.xs);
            chain.multiply(rows, gate);
            let rows = dense(&mut chain, rows, &half.output);
            let long = loaded(&mut chain, &of.long);
            chain.add(rows, long);
            rows
        };
        let ys = out(&self.y, &y, of_x);
        let xs = out(&self.x, &x, of_y);
        chain.add(xs, ys);
        chain.store(xs);
        chain.store(ys);
        run(&chain)
    }
}

impl Sam {
    fn restored(&self, xs: &Tensor, image: &Tensor) -> [Tensor; 2] {
        let restored = self.image.forward(&first(xs)) + image;
        let weights = last(&self.attention.forward(&restored).sigmoid());
        let features = xs.addcmul(&convolved(&self.features, xs), &weights);
        [features.contiguous(), restored]
    }
}

/// Each signal at the scale of its resize, before the layer.
fn resized(resizes: &[Resize; LEVELS], signals: &[Tensor]) -> [Tensor; LEVELS] {
    resizes
        .each_ref()
        .map(|resize| last(&resize.interpolated(&first(&signals[resize.from]))).contiguous())
}

fn signals<'a>(resizes: &'a [Resize; LEVELS], maps: &'a [Tensor; LEVELS]) -> [Signal<'a>; LEVELS] {
    std::array::from_fn(|place| (&maps[place], Some(&resizes[place].conv)))
}

impl Stage {
    /// As [`forward`](Stage::forward), with everything but images channels last.
    pub(super) fn passed(
        &self,
        images: &[Tensor],
        before: Option<&Handed>,
    ) -> Result<(Handed, Vec<Tensor>)> {
        let mut scales = Vec::with_capacity(LEVELS);
        for (level, (conv, fuse)) in self.inputs.iter().enumerate() {
            let xs = last(&conv.forward(&channels_last(&images[level])?)).contiguous();
            scales.push(match (fuse, before) {
                (Some(fuse), Some(before)) => {
                    let [xs, _] = fuse.crossed(&[(&xs, None)], &before.attended[level])?;
                    xs
                }
                _ => xs,
            });
        }
        let mut xs = scales[0].shallow_clone();
        let mut encoded = Vec::with_capacity(LEVELS);
        for (level, encoder) in self.encoders.iter().enumerate() {
            let mut bridge = encoder
                .body
                .passed(&[(&xs, None), (&scales[level], None)])?;
            if let (Some(cross), Some(before)) = (&encoder.cross, before) {
                let other = &before.encoded[level] + &before.decoded[level];
                let [gated, _] = cross.crossed(&[(&bridge, None)], &other)?;
                bridge = gated;
            }
            xs = convolved(&encoder.down, &bridge);
            encoded.push(bridge);
        }
        drop(scales);
        for bottleneck in &self.bottlenecks {
            xs = bottleneck.passed(&[(&xs, None)])?;
        }
        let mut global = xs.shallow_clone();
        let mut skips = Vec::with_capacity(LEVELS);
        for (resizes, gate) in &self.gates {
            let maps = resized(resizes, &encoded);
            let [skip, next] = gate.crossed(&signals(resizes, &maps), &global)?;
            skips.insert(0, skip);
            global = next;
        }
        let (mut decoded, mut attended, mut restored) = (Vec::new(), Vec::new(), Vec::new());
        for (decoder, image) in self.decoders.iter().zip(images.iter().rev()) {
            let (raised, maps) = (decoder.up.raise(&xs)?, resized(&decoder.resizes, &skips));
            let [a, b, c] = signals(&decoder.resizes, &maps);
            xs = decoder.body.passed(&[(&raised, None), a, b, c])?;
            match &decoder.output {
                Output::Sam(sam) => {
                    let [features, output] = sam.restored(&xs, image);
                    attended.insert(0, features);
                    restored.push(output);
                }
                Output::Last(conv) => restored.push(conv.forward(&first(&xs)) + image),
            }
            decoded.insert(0, xs.shallow_clone());
        }
        let handed = Handed {
            encoded,
            decoded,
            attended,
        };
        Ok((handed, restored))
    }
}
