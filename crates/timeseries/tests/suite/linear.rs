//! The baselines against what they are by definition.

use densely_core::{Result, seeded};
use densely_testkit::{assert_bits, assert_close};
use densely_timeseries::linear::{LinearConfig, Ridge, Variant, seasonal_naive};
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

#[test]
fn the_last_season_again() -> Result<()> {
    let past = Tensor::arange(10, (Kind::Float, Device::Cpu)).view([1, 10, 1]);
    let steps = |season, horizon| -> Result<Vec<f64>> {
        Ok(Vec::try_from(
            seasonal_naive(&past, season, horizon)?
                .flatten(0, -1)
                .to_kind(Kind::Double),
        )
        .expect("numbers"))
    };
    assert_eq!(steps(4, 6)?, [6.0, 7.0, 8.0, 9.0, 6.0, 7.0]);
    assert_eq!(steps(1, 3)?, [9.0, 9.0, 9.0]);
    let message = seasonal_naive(&past, 11, 3)
        .expect_err("too long")
        .to_string();
    assert!(
        message.contains("`season`") && message.contains("10"),
        "{message}"
    );
    Ok(())
}

#[test]
fn ridge_finds_the_map_that_made_the_data_and_its_gradient_is_zero() -> Result<()> {
    let (past, noise) = seeded(0, || {
        (
            Tensor::randn([200, 8, 2], (Kind::Double, Device::Cpu)),
            Tensor::randn([200, 3, 2], (Kind::Double, Device::Cpu)),
        )
    });
    let map = seeded(1, || Tensor::randn([8, 3], (Kind::Double, Device::Cpu)));
    let last = past.narrow(1, 7, 1);
    let exact = (&past - &last).transpose(1, 2).matmul(&map).transpose(1, 2) + &last;
    let halves = |future: &Tensor| {
        let future = future.shallow_clone();
        let past = past.shallow_clone();
        (0..2).map(move |i| Ok((past.narrow(0, i * 100, 100), future.narrow(0, i * 100, 100))))
    };
    // The last column of inputs is zero (the last value less itself): only a penalty makes the system solvable.
    let fitted = Ridge::fit(halves(&exact), 1e-9)?;
    assert_close(&fitted.forward(&past)?, &exact, 1e-6, 1e-6);

    let (future, penalty) = (exact + noise, 3.0);
    let fitted = Ridge::fit(halves(&future), penalty)?;
    let residual = (fitted.forward(&past)? - &future)
        .transpose(1, 2)
        .flatten(0, 1);
    let rows = (&past - &last).transpose(1, 2).flatten(0, 1);
    // At the minimum Xᵀ(XW − Y) + penalty·W = 0; W is read off the unit windows, whose last value is 0.
    let units = Tensor::eye(8, (Kind::Double, Device::Cpu))
        .narrow(0, 0, 7)
        .unsqueeze(2);
    let weight = fitted.forward(&units)?.squeeze_dim(2);
    let gradient = rows.tr().matmul(&residual).narrow(0, 0, 7) + weight * penalty;
    assert_close(&gradient, &gradient.zeros_like(), 0.0, 1e-9);
    Ok(())
}

#[test]
fn fresh_linear_models_forecast_the_mean() -> Result<()> {
    for variant in [Variant::Dlinear, Variant::Nlinear] {
        let config = LinearConfig {
            lookback: 12,
            horizon: 4,
            channels: 2,
            kernel: 5,
            variant,
        };
        let mut vs = VarStore::new(Device::Cpu);
        let model = seeded(0, || config.build(&vs.root()))?;
        vs.freeze();
        for (name, mut xs) in densely_core::weights::named(&vs) {
            if name.ends_with("bias") {
                let _ = xs.fill_(0.0);
            }
        }
        let past = Tensor::arange(48, (Kind::Float, Device::Cpu)).view([2, 12, 2]);
        let mean = past
            .mean_dim([1].as_slice(), true, Kind::Float)
            .expand([2, 4, 2], false);
        let ys = model.forward(&past)?;
        if variant == Variant::Nlinear {
            assert_close(&ys, &mean, 1e-5, 1e-5);
        } else {
            // Trend and rest together are the window: equal weights give its mean.
            assert_close(&ys, &mean, 1e-5, 1e-4);
        }
        assert_bits(&model.forward(&past)?, &ys);
    }
    Ok(())
}
