//! Learning rates as functions of the step, equal to `torch.optim.lr_scheduler` in closed form.

use std::f64::consts::PI;

use densely_core::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize};

use crate::metrics::Direction;

/// A learning-rate schedule and a linear warm-up before it; in TOML `name = "cosine"`, `warmup_steps = 100` and the
/// schedule's own fields beside them.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ScheduleConfig {
    /// The schedule after the warm-up.
    #[serde(flatten)]
    pub shape: Shape,
    /// Steps over which the rate climbs in a line to the schedule's first: step `s` of `w` takes `(s + 1) / (w + 1)`
    /// of it. The schedule starts when they are over.
    pub warmup_steps: u64,
}

// By hand, because serde's `flatten` would let unknown fields pass.
impl<'de> Deserialize<'de> for ScheduleConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        use serde::de::Error;
        let mut fields = serde_json::Map::<String, serde_json::Value>::deserialize(deserializer)?;
        let warmup_steps = match fields.remove("warmup_steps") {
            Some(value) => serde_json::from_value(value)
                .map_err(|e| D::Error::custom(format!("warmup_steps: {e}")))?,
            None => 0,
        };
        let shape = serde_json::from_value(serde_json::Value::Object(fields));
        Ok(Self {
            shape: shape.map_err(D::Error::custom)?,
            warmup_steps,
        })
    }
}

/// How the learning rate moves after the warm-up.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum Shape {
    /// It stays.
    #[default]
    Constant,
    /// Half a cosine down to `min_lr` at the last step.
    Cosine {
        /// The rate at the end.
        #[serde(default)]
        min_lr: f64,
    },
    /// Multiplied by `factor` every so many epochs.
    Step {
        /// Epochs between two drops.
        every: u64,
        /// What remains at each drop.
        #[serde(default = "tenth")]
        factor: f64,
    },
    /// Multiplied by `factor` at each of the epochs.
    Multistep {
        /// Epochs, counted from 0, at whose start the rate drops.
        milestones: Vec<u64>,
        /// What remains at each drop.
        #[serde(default = "tenth")]
        factor: f64,
    },
    /// A line between two shares of the rate.
    Linear {
        /// Share at the first step.
        #[serde(default = "one")]
        start_factor: f64,
        /// Share at the last step.
        #[serde(default)]
        end_factor: f64,
    },
    /// `(1 - share of steps done)^power`.
    Polynomial {
        /// The power.
        #[serde(default = "one")]
        power: f64,
    },
    /// Up to the rate and down again to almost nothing (Smith and Topin 2017, arXiv 1708.07120), two phases.
    OneCycle {
        /// Share of the steps that climb.
        #[serde(default = "pct_start")]
        pct_start: f64,
        /// Rate divided by the first rate.
        #[serde(default = "div_factor")]
        div_factor: f64,
        /// First rate divided by the last.
        #[serde(default = "final_div_factor")]
        final_div_factor: f64,
        /// Along a cosine or a line.
        #[serde(default)]
        anneal: Anneal,
    },
    /// Multiplied by `factor` when the score has not improved for more than `patience` epochs.
    Plateau {
        /// What remains at each drop.
        #[serde(default = "tenth")]
        factor: f64,
        /// Epochs without improvement that are borne.
        #[serde(default = "patience")]
        patience: u64,
        /// Share of the best score by which a better one must differ.
        #[serde(default = "threshold")]
        threshold: f64,
        /// The threshold is no share but a difference.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        absolute: bool,
        /// Epochs after a drop in which bad ones do not count.
        #[serde(default)]
        cooldown: u64,
        /// The rate never falls below.
        #[serde(default)]
        min_lr: f64,
    },
}

/// The curve of [`Shape::OneCycle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Anneal {
    /// Half a cosine.
    #[default]
    Cos,
    /// A line.
    Linear,
}

const fn one() -> f64 {
    1.0
}
const fn tenth() -> f64 {
    0.1
}
const fn pct_start() -> f64 {
    0.3
}
const fn div_factor() -> f64 {
    25.0
}
const fn final_div_factor() -> f64 {
    1e4
}
const fn patience() -> u64 {
    10
}
const fn threshold() -> f64 {
    1e-4
}

impl ScheduleConfig {
    /// The rate stays, without warm-up.
    pub const fn constant() -> Self {
        Self {
            shape: Shape::Constant,
            warmup_steps: 0,
        }
    }

    /// Checks every setting's range.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting.
    pub fn validate(&self) -> Result<()> {
        let check = |field: &str, value: f64, fits: bool, expected: &str| {
            if fits && value.is_finite() {
                return Ok(());
            }
            let reason = format!("must be {expected}, got {value}");
            Err(Error::config(format!("schedule.{field}"), reason))
        };
        let positive = |field: &str, value: f64| check(field, value, value > 0.0, "above 0");
        let not_negative =
            |field: &str, value: f64| check(field, value, value >= 0.0, "at least 0");
        match &self.shape {
            Shape::Constant => Ok(()),
            Shape::Cosine { min_lr } => not_negative("min_lr", *min_lr),
            Shape::Step { every, factor } => {
                positive("every", *every as f64)?;
                positive("factor", *factor)
            }
            Shape::Multistep { milestones, factor } => {
                if !milestones.is_sorted() {
                    let reason = format!("must rise, got {milestones:?}");
                    return Err(Error::config("schedule.milestones", reason));
                }
                positive("factor", *factor)
            }
            Shape::Linear {
                start_factor,
                end_factor,
            } => {
                positive("start_factor", *start_factor)?;
                not_negative("end_factor", *end_factor)
            }
            Shape::Polynomial { power } => not_negative("power", *power),
            Shape::OneCycle {
                pct_start,
                div_factor,
                final_div_factor,
                ..
            } => {
                let inside = (0.0..=1.0).contains(pct_start);
                check("pct_start", *pct_start, inside, "in [0, 1]")?;
                positive("div_factor", *div_factor)?;
                positive("final_div_factor", *final_div_factor)
            }
            Shape::Plateau {
                factor,
                threshold,
                min_lr,
                ..
            } => {
                check("factor", *factor, (0.0..1.0).contains(factor), "in [0, 1)")?;
                not_negative("threshold", *threshold)?;
                not_negative("min_lr", *min_lr)
            }
        }
    }

    /// The schedule for a run of `steps_total` steps with the rate `lr` as its base.
    ///
    /// # Errors
    /// [`Error::Config`] when [`validate`](Self::validate) fails or the warm-up is as long as the run.
    pub fn bind(&self, lr: f64, steps_total: u64, steps_per_epoch: u64) -> Result<Schedule> {
        self.validate()?;
        if self.warmup_steps > 0 && self.warmup_steps >= steps_total {
            let reason = format!(
                "must be below the run's {steps_total} steps, got {}",
                self.warmup_steps
            );
            return Err(Error::config("schedule.warmup_steps", reason));
        }
        let plateau = match self.shape {
            Shape::Plateau { .. } => Some(PlateauState {
                lr,
                best: None,
                bad: 0,
                cooldown: 0,
            }),
            _ => None,
        };
        Ok(Schedule {
            config: self.clone(),
            lr,
            steps: steps_total.saturating_sub(self.warmup_steps).max(1),
            steps_per_epoch: steps_per_epoch.max(1),
            plateau,
        })
    }
}

/// A schedule of one run; see [`ScheduleConfig::bind`].
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    config: ScheduleConfig,
    lr: f64,
    /// Steps after the warm-up.
    steps: u64,
    steps_per_epoch: u64,
    plateau: Option<PlateauState>,
}

/// What a plateau schedule remembers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlateauState {
    /// The rate now.
    pub lr: f64,
    /// The best score so far.
    pub best: Option<f64>,
    /// Epochs since then.
    pub bad: u64,
    /// Epochs of cool-down that remain.
    pub cooldown: u64,
}

impl Schedule {
    /// The learning rate of step `step`, counted from 0. It depends on nothing but the step and, for a plateau, the
    /// scores that were observed.
    pub fn at(&self, step: u64) -> f64 {
        let warmup = self.config.warmup_steps;
        if step < warmup {
            return self.after_warmup(0) * (step + 1) as f64 / (warmup + 1) as f64;
        }
        self.after_warmup(step - warmup)
    }

    /// Tells the score of an epoch. Only a plateau listens.
    pub fn observe(&mut self, score: f64, direction: Direction) {
        let Shape::Plateau {
            factor,
            patience,
            threshold,
            absolute,
            cooldown,
            min_lr,
        } = self.config.shape
        else {
            return;
        };
        let Some(state) = &mut self.plateau else {
            return;
        };
        let better = state.best.is_none_or(|best| {
            let margin = if absolute {
                threshold
            } else {
                best * threshold
            };
            match direction {
                Direction::Lower => score < best - margin,
                Direction::Higher => score > best + margin,
            }
        });
        if better && score.is_finite() {
            state.best = Some(score);
            state.bad = 0;
        } else {
            state.bad += 1;
        }
        if state.cooldown > 0 {
            state.cooldown -= 1;
            state.bad = 0;
        }
        if state.bad > patience {
            let lr = (state.lr * factor).max(min_lr);
            // PyTorch ignores drops smaller than this.
            if state.lr - lr > 1e-8 {
                state.lr = lr;
            }
            state.cooldown = cooldown;
            state.bad = 0;
        }
    }

    /// What must be kept for a resume; `None` for schedules that are pure functions.
    pub const fn state(&self) -> Option<PlateauState> {
        self.plateau
    }

    /// Goes on from a kept state.
    pub fn load_state(&mut self, state: Option<PlateauState>) {
        if self.plateau.is_some() && state.is_some() {
            self.plateau = state;
        }
    }

    fn after_warmup(&self, step: u64) -> f64 {
        let (lr, total) = (self.lr, self.steps as f64);
        let done = (step.min(self.steps)) as f64;
        let epoch = step / self.steps_per_epoch;
        match &self.config.shape {
            Shape::Constant => lr,
            Shape::Cosine { min_lr } => {
                min_lr + (lr - min_lr) * (1.0 + (PI * done / total).cos()) / 2.0
            }
            Shape::Step { every, factor } => lr * factor.powf((epoch / every) as f64),
            Shape::Multistep { milestones, factor } => {
                lr * factor.powf(milestones.partition_point(|at| *at <= epoch) as f64)
            }
            Shape::Linear {
                start_factor,
                end_factor,
            } => lr * (start_factor + (end_factor - start_factor) * done / total),
            Shape::Polynomial { power } => lr * (1.0 - done / total).powf(*power),
            Shape::OneCycle {
                pct_start,
                div_factor,
                final_div_factor,
                anneal,
            } => {
                let first = lr / div_factor;
                let last = first / final_div_factor;
                let top = pct_start * total - 1.0;
                let step = (step as f64).min(total - 1.0);
                if step <= top {
                    // A climb of one step stands at its top.
                    anneal.between(first, lr, if top > 0.0 { step / top } else { 1.0 })
                } else {
                    let top = top.max(0.0);
                    let length = total - 1.0 - top;
                    anneal.between(
                        lr,
                        last,
                        if length > 0.0 {
                            (step - top) / length
                        } else {
                            1.0
                        },
                    )
                }
            }
            Shape::Plateau { .. } => self.plateau.map_or(lr, |state| state.lr),
        }
    }
}

impl Anneal {
    fn between(self, start: f64, end: f64, share: f64) -> f64 {
        match self {
            Self::Cos => end + (start - end) / 2.0 * ((PI * share).cos() + 1.0),
            Self::Linear => (end - start) * share + start,
        }
    }
}
