#![doc = include_str!("../README.md")]

#[cfg(test)]
extern crate self as densely_train;

pub mod amp;
pub mod average;
pub mod calibration;
pub mod event;
pub mod fidelity;
pub mod graph;
pub mod machine;
pub mod metrics;
pub mod optim;
#[cfg(feature = "plots")]
pub mod plot;
pub mod progress;
pub mod report;
pub mod run;
pub mod schedule;
pub mod signal;
pub mod svg;
pub mod training;
pub mod tune;

pub use amp::GradScaler;
pub use event::Event;
pub use graph::StepGraph;
pub use machine::{Env, peak_rss_mb, step_seed};
pub use metrics::{Direction, Metric};
pub use optim::{GroupRule, OptimConfig, Optimizer};
pub use run::{Decision, Progress, ResumeFrom, Run, RunOptions};
pub use schedule::{Schedule, ScheduleConfig};
