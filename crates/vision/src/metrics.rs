//! What classifiers and restorers are judged by, in double precision.

use densely_core::{Error, Result};
pub use densely_train::fidelity::{Fidelity, fidelity, psnr, ssim};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// How often each class was taken for each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confusion {
    /// `counts[label][prediction]`.
    pub counts: Vec<Vec<u64>>,
}

/// How well a classifier does on a set.
#[derive(Debug, Clone, PartialEq)]
pub struct Classified {
    /// Pictures.
    pub pictures: usize,
    /// Share whose class has the largest logit.
    pub top1: f64,
    /// Share whose class is among the five largest logits.
    pub top5: f64,
    /// Mean cross entropy, nats.
    pub loss: f64,
    /// By class.
    pub confusion: Confusion,
}

/// Judges `logits` `[n, classes]` by `labels` `[n]` (integers).
///
/// # Errors
/// [`Error::Shape`] when they do not fit or hold a value that is not finite.
pub fn classified(logits: &Tensor, labels: &Tensor) -> Result<Classified> {
    let size = logits.size();
    let fits = size.len() == 2 && size[0] > 0 && labels.size() == size[..1];
    let wrong = |got: String| Error::Shape {
        what: "logits".to_owned(),
        expected: "[n, classes] finite numbers, and n labels below the number of classes"
            .to_owned(),
        got,
    };
    if !fits {
        return Err(wrong(format!("{size:?} and {:?}", labels.size())));
    }
    let logits = logits.to_device(Device::Cpu).to_kind(Kind::Double);
    let labels = labels.to_device(Device::Cpu).to_kind(Kind::Int64);
    if logits.isfinite().all().int64_value(&[]) == 0 {
        return Err(wrong("values that are not".to_owned()));
    }
    let numbers: Vec<i64> = Vec::try_from(&labels)?;
    if let Some(label) = numbers.iter().find(|label| !(0..size[1]).contains(*label)) {
        return Err(wrong(format!("label {label} of {} classes", size[1])));
    }
    let of_label = logits.gather(1, &labels.unsqueeze(1), false);
    // A class that is as likely as the right one stands before it when its number is smaller, as a sort would have it.
    let larger = logits.gt_tensor(&of_label);
    let classes = Tensor::arange(size[1], (Kind::Int64, Device::Cpu));
    let earlier = logits
        .eq_tensor(&of_label)
        .logical_and(&classes.lt_tensor(&labels.unsqueeze(1)));
    let before = larger
        .logical_or(&earlier)
        .sum_dim_intlist(1i64, false, Kind::Int64);
    let share = |most: i64| {
        before
            .lt(most)
            .to_kind(Kind::Double)
            .mean(None)
            .double_value(&[])
    };
    let loss = logits.logsumexp(1i64, true) - &of_label;
    let predictions: Vec<i64> = Vec::try_from(logits.argmax(1, false))?;
    let mut counts = vec![vec![0; size[1] as usize]; size[1] as usize];
    for (label, prediction) in numbers.iter().zip(predictions) {
        counts[*label as usize][prediction as usize] += 1;
    }
    Ok(Classified {
        pictures: size[0] as usize,
        top1: share(1),
        top5: share(5),
        loss: loss.mean(None).double_value(&[]),
        confusion: Confusion { counts },
    })
}

impl Confusion {
    /// Share of the pictures of a class that were taken for it; none for a class without a picture.
    pub fn recall(&self, class: usize) -> Option<f64> {
        let row = self.counts.get(class)?;
        let all: u64 = row.iter().sum();
        (all > 0).then(|| row[class] as f64 / all as f64)
    }

    /// Share of the pictures taken for a class that are of it; none for a class that was never named.
    pub fn precision(&self, class: usize) -> Option<f64> {
        let all: u64 = self
            .counts
            .iter()
            .map(|row| row.get(class).copied().unwrap_or(0))
            .sum();
        let right = *self.counts.get(class)?.get(class)?;
        (all > 0).then(|| right as f64 / all as f64)
    }

    /// The pairs that were mistaken most often: label, prediction, count.
    pub fn worst(&self, most: usize) -> Vec<(usize, usize, u64)> {
        let mut pairs = Vec::new();
        for (label, row) in self.counts.iter().enumerate() {
            for (prediction, count) in row.iter().enumerate() {
                if label != prediction && *count > 0 {
                    pairs.push((label, prediction, *count));
                }
            }
        }
        pairs.sort_by_key(|&(label, prediction, count)| {
            (std::cmp::Reverse(count), label, prediction)
        });
        pairs.truncate(most);
        pairs
    }
}

/// The picture as a file of 8 bits would have it: clipped to 0..1 and rounded to multiples of 1/255.
pub fn to_bytes(xs: &Tensor) -> Tensor {
    (xs.clamp(0.0, 1.0) * 255.0).round() / 255.0
}

/// Luma of ITU-R BT.601 of pictures `[3, height, width]`, as restoration of rain is judged: `[1, height, width]`, 16/255 to 235/255. Grey pictures are taken
/// as they are.
pub fn luma(xs: &Tensor) -> Tensor {
    if xs.size()[0] != 3 {
        return xs.shallow_clone();
    }
    let xs = xs.to_kind(Kind::Double);
    let part = |channel: i64, factor: f64| xs.narrow(0, channel, 1) * factor;
    (part(0, 65.481) + part(1, 128.553) + part(2, 24.966) + 16.0) / 255.0
}
