//! Scores against the reference packages.

use densely_core::Result;
use densely_testkit::Golden;
use densely_vision::metrics::{classified, luma, psnr, ssim, to_bytes};
use tch::Tensor;

const HERE: &str = env!("CARGO_MANIFEST_DIR");

fn near(actual: f64, expected: f64) {
    assert!(
        (actual - expected).abs() < 1e-9 * expected.abs().max(1.0),
        "{actual} {expected}"
    );
}

#[test]
fn psnr_and_ssim_equal_scikit_image() -> Result<()> {
    let golden = Golden::open(HERE, "metrics_pictures");
    for case in ["grey", "colour"] {
        let (xs, ys) = (
            golden.tensor(&format!("{case}.restored")),
            golden.tensor(&format!("{case}.clean")),
        );
        let expected = golden.tensor(&format!("{case}.scores"));
        near(psnr(&xs, &ys)?, expected.double_value(&[0]));
        near(ssim(&xs, &ys)?, expected.double_value(&[1]));
        near(psnr(&to_bytes(&xs), &ys)?, expected.double_value(&[2]));
        if case == "colour" {
            near(psnr(&luma(&xs), &luma(&ys))?, expected.double_value(&[3]));
            near(ssim(&luma(&xs), &luma(&ys))?, expected.double_value(&[4]));
        }
    }
    let xs = Tensor::zeros([1, 12, 12], tch::kind::FLOAT_CPU);
    assert!(psnr(&xs, &xs)?.is_infinite());
    assert!(ssim(&xs.narrow(1, 0, 5), &xs.narrow(1, 0, 5)).is_err());
    assert!(psnr(&xs, &(&xs / 0.0)).is_err());
    Ok(())
}

#[test]
fn classes_equal_scikit_learn() -> Result<()> {
    let golden = Golden::open(HERE, "metrics_classes");
    let found = classified(&golden.tensor("logits"), &golden.tensor("labels"))?;
    let expected = golden.tensor("scores");
    near(found.top1, expected.double_value(&[0]));
    near(found.top5, expected.double_value(&[1]));
    near(found.loss, expected.double_value(&[2]));
    let counts: Vec<i64> = Vec::try_from(golden.tensor("confusion").flatten(0, -1))?;
    let ours: Vec<i64> = found
        .confusion
        .counts
        .iter()
        .flatten()
        .map(|count| *count as i64)
        .collect();
    assert_eq!(ours, counts);
    let worst = found.confusion.worst(1)[0];
    assert_eq!(
        worst.2 as i64,
        *golden_off_diagonal(&counts, 8)
            .iter()
            .max()
            .expect("mistakes")
    );
    assert!(classified(&golden.tensor("logits"), &(golden.tensor("labels") + 8)).is_err());
    Ok(())
}

fn golden_off_diagonal(counts: &[i64], classes: usize) -> Vec<i64> {
    let off = counts
        .iter()
        .enumerate()
        .filter(|(place, _)| place / classes != place % classes);
    off.map(|(_, count)| *count).collect()
}

#[test]
fn losses_equal_torch_and_timm() {
    use densely_vision::losses::{
        RestorationLoss, charbonnier, frequency, restoration, smoothed, soft_cross_entropy,
    };
    let golden = Golden::open(HERE, "metrics_losses");
    let expected = |name: &str| golden.tensor(name).double_value(&[]);
    let (logits, labels) = (golden.tensor("logits"), golden.tensor("labels"));
    let targets = smoothed(&labels, 8, 0.1, tch::Kind::Double);
    near(
        soft_cross_entropy(&logits, &targets).double_value(&[]),
        expected("label_smoothing"),
    );
    let (xs, ys) = (golden.tensor("restored"), golden.tensor("clean"));
    near(
        charbonnier(&xs, &ys, 1e-3).double_value(&[]),
        expected("charbonnier"),
    );
    near(frequency(&xs, &ys).double_value(&[]), expected("frequency"));
    let half = golden.tensor("half").set_requires_grad(true);
    let both = [half.shallow_clone(), xs];
    let loss = restoration(&both, &ys, RestorationLoss::default()).expect("two outputs");
    near(loss.double_value(&[]), expected("sum"));
    loss.backward();
    let difference = (half.grad() - golden.tensor("grad_half"))
        .abs()
        .max()
        .double_value(&[]);
    assert!(difference < 1e-12, "{difference}");
}
