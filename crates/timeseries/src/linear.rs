//! What every forecaster must beat: the last season again, a linear map in closed form, and the trained linear models.
//!
//! DLinear and NLinear: Zeng, Chen, Zhang, Xu 2023, arXiv 2205.13504 (AAAI), by the names of its released code
//! (`LTSF-Linear`). Ridge: the same map, but the exact minimum instead of a descent (Toner & Darlow 2024, arXiv 2403.14587).

use densely_core::nn::{Linear, parameter};
use densely_core::{Error, Model, Result, Tensors, check, registry};
use serde::{Deserialize, Serialize};
use tch::nn::{Module, Path};
use tch::{Kind, Tensor};

/// Sizes of a DLinear or NLinear. One map over time serves all channels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinearConfig {
    /// Which of the two.
    pub variant: Variant,
    /// Steps that the model sees, T.
    pub lookback: i64,
    /// Steps that it forecasts, H.
    pub horizon: i64,
    /// Series, C.
    pub channels: i64,
    /// Steps in the moving average that DLinear takes for the trend; odd.
    pub kernel: i64,
}

/// How the window is prepared for the linear map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// A map for the moving average and one for the rest.
    Dlinear,
    /// The last value is taken off before and put back after.
    Nlinear,
}

impl Default for LinearConfig {
    fn default() -> Self {
        Self {
            variant: Variant::Dlinear,
            lookback: 512,
            horizon: 96,
            channels: 7,
            kernel: 25,
        }
    }
}

impl LinearConfig {
    /// A preset of this variant.
    pub fn of(variant: Variant) -> Self {
        Self {
            variant,
            ..Self::default()
        }
    }

    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        for (field, size) in [
            ("lookback", self.lookback),
            ("horizon", self.horizon),
            ("channels", self.channels),
            ("kernel", self.kernel),
        ] {
            check::positive(field, size)?;
        }
        if self.kernel % 2 == 0 {
            return Err(Error::config(
                "kernel",
                format!("must be odd, got {}", self.kernel),
            ));
        }
        Ok(())
    }

    /// Creates the parameters under `vs`: every weight 1/T, as released for DLinear, and biases from U(±1/√T). NLinear was released with the weights
    /// of `torch.nn.Linear`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is out of range.
    pub fn build(&self, vs: &Path) -> Result<LinearForecaster> {
        self.validate()?;
        let linear = |name: &str| averaging_linear(&(vs / name), self.lookback, self.horizon);
        let maps = match self.variant {
            Variant::Dlinear => vec![linear("Linear_Seasonal"), linear("Linear_Trend")],
            Variant::Nlinear => vec![linear("Linear")],
        };
        Ok(LinearForecaster {
            maps,
            config: self.clone(),
        })
    }

    /// Multiply-accumulates of all matrix products for one window.
    pub fn macs(&self) -> u64 {
        let maps = if self.variant == Variant::Dlinear {
            2
        } else {
            1
        };
        (maps * self.channels * self.lookback * self.horizon) as u64
    }
}

fn averaging_linear(vs: &Path, inputs: i64, outputs: i64) -> Linear {
    let bound = 1.0 / (inputs as f64).sqrt();
    let weight = Tensor::full([outputs, inputs], 1.0 / inputs as f64, tch::kind::FLOAT_CPU);
    Linear {
        weight: parameter(vs, "weight", &weight),
        bias: Some(parameter(
            vs,
            "bias",
            &densely_core::nn::uniform(&[outputs], bound),
        )),
    }
}

/// A built DLinear or NLinear.
#[derive(Debug)]
pub struct LinearForecaster {
    maps: Vec<Linear>,
    config: LinearConfig,
}

impl LinearForecaster {
    /// The forecast: `past [batch, lookback, channels]` → `[batch, horizon, channels]`.
    ///
    /// # Errors
    /// [`Error::Shape`] when `past` does not fit the config.
    pub fn forward(&self, past: &Tensor) -> Result<Tensor> {
        let LinearConfig {
            lookback,
            channels,
            kernel,
            ..
        } = self.config;
        check::shape("past", past, &[None, Some(lookback), Some(channels)])?;
        check::kind("past", past, self.maps[0].weight.kind())?;
        let xs = past.transpose(1, 2); // [batch, channels, lookback]
        let ys = match self.config.variant {
            Variant::Nlinear => {
                let last = xs.narrow(2, lookback - 1, 1);
                self.maps[0].forward(&(&xs - &last)) + last
            }
            Variant::Dlinear => {
                let side = (kernel - 1) / 2;
                let padded = xs.replication_pad1d([side, side]);
                let trend = padded.avg_pool1d([kernel], [1], [0], false, true);
                self.maps[0].forward(&(&xs - &trend)) + self.maps[1].forward(&trend)
            }
        };
        Ok(ys.transpose(1, 2))
    }
}

impl Model for LinearForecaster {
    fn forward_named(&self, inputs: &Tensors, _train: bool) -> Result<Tensors> {
        let [past] = registry::take_inputs(inputs, ["past"])?;
        Ok(Tensors::from([(
            "forecast".to_owned(),
            self.forward(past.ok_or_else(|| check::absent("past"))?)?,
        )]))
    }
}

/// The linear map from windows to futures with the least squared error plus `penalty` times the squared weights, shared by all
/// channels, on windows less their last value.
#[derive(Debug)]
pub struct Ridge {
    /// `[lookback, horizon]`.
    weight: Tensor,
}

impl Ridge {
    /// Fits batches of `past [batch, lookback, channels]` and `future [batch, horizon, channels]`, in f64: sums of products are all
    /// that is kept, so the number of windows does not matter.
    ///
    /// # Errors
    /// [`Error::Config`] when there is no batch or `penalty` is negative; [`Error::Shape`] when batches differ in lookback or
    /// horizon; [`Error::Torch`] when the system cannot be solved (a penalty above 0 makes it solvable).
    pub fn fit(
        batches: impl Iterator<Item = Result<(Tensor, Tensor)>>,
        penalty: f64,
    ) -> Result<Self> {
        if !(penalty >= 0.0 && penalty.is_finite()) {
            return Err(Error::config(
                "penalty",
                format!("must be at least 0 and finite, got {penalty}"),
            ));
        }
        let mut sums: Option<(Tensor, Tensor)> = None;
        for batch in batches {
            let (past, future) = batch?;
            let (xs, ys, _) = Self::rows(&past, Some(&future))?;
            let ys = ys.unwrap_or_else(|| xs.shallow_clone());
            let (xx, xy) = (xs.tr().matmul(&xs), xs.tr().matmul(&ys));
            sums = Some(match sums {
                None => (xx, xy),
                Some((a, b)) => (a.f_add(&xx)?, b.f_add(&xy)?),
            });
        }
        let Some((xx, xy)) = sums else {
            return Err(Error::config("windows", "there is none to fit"));
        };
        let eye = Tensor::eye(xx.size()[0], (Kind::Double, xx.device()));
        let weight = Tensor::f_linalg_solve(&(xx + eye * penalty), &xy, true)?;
        Ok(Self { weight })
    }

    /// The forecast `[batch, horizon, channels]`, f64, of `past [batch, lookback, channels]`.
    ///
    /// # Errors
    /// [`Error::Shape`] for another lookback than that of the fit.
    pub fn forward(&self, past: &Tensor) -> Result<Tensor> {
        check::shape("past", past, &[None, Some(self.weight.size()[0]), None])?;
        let (xs, _, last) = Self::rows(past, None)?;
        let (batch, channels) = (past.size()[0], past.size()[2]);
        let ys = (xs.matmul(&self.weight) + last).reshape([batch, channels, -1]);
        Ok(ys.transpose(1, 2))
    }

    /// One row per window and channel, less its last value: inputs, targets, and that value `[rows, 1]`.
    fn rows(past: &Tensor, future: Option<&Tensor>) -> Result<(Tensor, Option<Tensor>, Tensor)> {
        check::shape("past", past, &[None; 3])?;
        let flat = |xs: &Tensor| xs.to_kind(Kind::Double).transpose(1, 2).flatten(0, 1); // [rows, steps]
        let xs = flat(past);
        let last = xs.narrow(1, xs.size()[1] - 1, 1);
        let ys = match future {
            None => None,
            Some(future) => {
                let size = past.size();
                check::shape("future", future, &[Some(size[0]), None, Some(size[2])])?;
                Some(flat(future) - &last)
            }
        };
        Ok((xs - &last, ys, last))
    }
}

/// The last season again: step h of the forecast is the value a whole number of seasons before it.
///
/// `past [batch, lookback, channels]` → `[batch, horizon, channels]`; `season` 1 repeats the last value.
/// # Errors
/// [`Error::Config`] for a season below 1 or above the lookback.
pub fn seasonal_naive(past: &Tensor, season: i64, horizon: i64) -> Result<Tensor> {
    check::shape("past", past, &[None; 3])?;
    let lookback = past.size()[1];
    if !(1..=lookback).contains(&season) {
        let reason = format!("must lie in 1 to the lookback, {lookback}, got {season}");
        return Err(Error::config("season", reason));
    }
    let steps: Vec<i64> = (0..horizon)
        .map(|h| lookback - season + h % season)
        .collect();
    Ok(past.index_select(1, &Tensor::from_slice(&steps).to_device(past.device())))
}
