//! Windows of series that lie one after the other in memory. A window is a number; only a batch of them is ever made.

use std::ops::Range;

use densely_core::Result;
use tch::{Device, Kind, Tensor};

use super::encode::{Encoders, Plane};
use super::panel::Panel;

/// A panel as tensors on a device.
#[derive(Debug)]
pub struct Store {
    /// `[rows, channels]`, f64, as in the table.
    values: Tensor,
    past: Option<Tensor>,
    known: Option<Tensor>,
    statics: Option<Tensor>,
    /// `[series, channels]`, f64.
    mean: Tensor,
    std: Tensor,
    lookback: i64,
    horizon: i64,
}

/// Level and spread of each channel of a series.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scale {
    pub mean: Vec<f64>,
    pub std: Vec<f64>,
}

impl Store {
    pub(super) fn new(
        panel: &Panel,
        encoders: &Encoders,
        scales: &[Scale],
        [lookback, horizon]: [i64; 2],
        device: Device,
    ) -> Result<Self> {
        let channels = panel.channels() as i64;
        let plane = |plane: &Plane| {
            let width = plane.width as i64;
            (width > 0).then(|| {
                Tensor::from_slice(&plane.values)
                    .view([-1, width])
                    .to_device(device)
            })
        };
        let of = |values: fn(&Scale) -> &Vec<f64>| {
            let all: Vec<f64> = scales
                .iter()
                .flat_map(|scale| values(scale).iter().copied())
                .collect();
            Tensor::from_slice(&all)
                .view([-1, channels])
                .to_device(device)
        };
        Ok(Self {
            values: Tensor::from_slice(&panel.values)
                .view([-1, channels])
                .to_device(device),
            past: plane(&encoders.past(panel)?),
            known: plane(&encoders.known(panel)?),
            statics: plane(&encoders.statics(panel)?),
            mean: of(|scale| &scale.mean),
            std: of(|scale| &scale.std),
            lookback,
            horizon,
        })
    }

    /// Where it lives.
    pub fn device(&self) -> Device {
        self.values.device()
    }

    /// The windows whose futures begin at these places. A lookback that reaches before the first row of a place's piece repeats that
    /// row's values.
    pub(super) fn batch(&self, places: &[Place]) -> Batch {
        let device = self.values.device();
        let count = places.len() as i64;
        let column = |of: fn(&Place) -> i64| {
            let all: Vec<i64> = places.iter().map(of).collect();
            Tensor::from_slice(&all).to_device(device)
        };
        let series = column(|place| place.series as i64);
        let start = column(|place| place.row as i64).unsqueeze(1);
        let steps = Tensor::arange_start(-self.lookback, self.horizon, (Kind::Int64, device));
        let floor = column(|place| place.floor as i64).unsqueeze(1);
        let rows = (start + steps).maximum(&floor); // [batch, lookback + horizon]
        let gather = |xs: &Tensor, from: i64, length: i64| {
            xs.index_select(0, &rows.narrow(1, from, length).flatten(0, 1))
                .view([count, length, -1])
        };
        let of_series = |xs: &Tensor| xs.index_select(0, &series);
        let (mean, std) = (
            of_series(&self.mean).unsqueeze(1),
            of_series(&self.std).unsqueeze(1),
        );
        let all = self.lookback + self.horizon;
        let scaled = ((gather(&self.values, 0, all) - &mean) / &std).to_kind(Kind::Float);
        let part =
            |xs: &Option<Tensor>, from, length| xs.as_ref().map(|xs| gather(xs, from, length));
        Batch {
            past: scaled.narrow(1, 0, self.lookback).contiguous(),
            target: scaled.narrow(1, self.lookback, self.horizon).contiguous(),
            covariates: part(&self.past, 0, self.lookback),
            past_known: part(&self.known, 0, self.lookback),
            future: part(&self.known, self.lookback, self.horizon),
            statics: self.statics.as_ref().map(of_series),
            mean,
            std,
            places: places.to_vec(),
        }
    }
}

/// Windows as a network takes them.
#[derive(Debug)]
pub struct Batch {
    /// Standardised targets, `[batch, lookback, channels]`.
    pub past: Tensor,
    /// What came, `[batch, horizon, channels]`; NaN where it is not known.
    pub target: Tensor,
    /// Past covariates, `[batch, lookback, n]`.
    pub covariates: Option<Tensor>,
    /// Known covariates over the lookback, `[batch, lookback, n]`.
    pub past_known: Option<Tensor>,
    /// Known covariates over the horizon, `[batch, horizon, n]`.
    pub future: Option<Tensor>,
    /// Static covariates, `[batch, n]`.
    pub statics: Option<Tensor>,
    /// What was subtracted, `[batch, 1, channels]`, f64.
    pub mean: Tensor,
    /// What was divided by, `[batch, 1, channels]`, f64.
    pub std: Tensor,
    pub(super) places: Vec<Place>,
}

/// Where a window's future begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub series: usize,
    /// Row of the storage.
    pub row: usize,
    /// The first row that a lookback may take.
    pub floor: usize,
}

/// Windows one step apart within a piece of a series.
#[derive(Debug, Clone)]
struct Span {
    first: Place,
    /// Windows in the spans before.
    before: i64,
}

/// Windows by number.
#[derive(Debug, Clone)]
pub struct Windows {
    spans: Vec<Span>,
    all: i64,
    stride: i64,
}

impl Windows {
    /// The windows whose futures lie wholly in the steps `part` of the grid, and whose lookbacks do too with `within`.
    pub(super) fn new(
        panel: &Panel,
        part: &Range<i64>,
        [lookback, horizon]: [i64; 2],
        within: bool,
    ) -> Self {
        let (mut spans, mut all) = (Vec::new(), 0);
        for (number, series) in panel.series.iter().enumerate() {
            let local = |step: i64| {
                step.saturating_sub(series.first)
                    .clamp(0, series.observed as i64)
            };
            let (low, high) = (local(part.start), local(part.end));
            for piece in &series.pieces {
                let begin = if within {
                    low.max(piece.start as i64)
                } else {
                    piece.start as i64
                };
                let first = low.max(begin + lookback);
                let count = high.min(piece.end as i64) - horizon - first + 1;
                if count > 0 {
                    let first = Place {
                        series: number,
                        row: series.start + first as usize,
                        floor: series.start + piece.start,
                    };
                    spans.push(Span { first, before: all });
                    all += count;
                }
            }
        }
        Self {
            spans,
            all,
            stride: 1,
        }
    }

    /// The same, every so many of them that at most `most` are left.
    pub(super) fn thinned(self, most: i64) -> Self {
        let stride = (self.all + most.max(1) - 1) / most.max(1);
        Self {
            stride: stride.max(1),
            ..self
        }
    }

    /// Windows from one to the next that is taken.
    pub const fn stride(&self) -> i64 {
        self.stride
    }

    /// Windows that are taken.
    pub const fn len(&self) -> i64 {
        (self.all + self.stride - 1) / self.stride
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.all == 0
    }

    /// The place of a window; numbers are below [`len`](Self::len).
    pub(super) fn place(&self, number: i64) -> Place {
        let number = number * self.stride;
        let at = self.spans.partition_point(|span| span.before <= number) - 1;
        let span = &self.spans[at];
        Place {
            row: span.first.row + (number - span.before) as usize,
            ..span.first
        }
    }

    pub(super) fn places(&self, numbers: &[i64]) -> Vec<Place> {
        numbers.iter().map(|number| self.place(*number)).collect()
    }

    /// Numbers of all windows, `size` at a time.
    pub(super) fn chunks(&self, size: i64) -> impl Iterator<Item = Vec<i64>> + use<> {
        let len = self.len();
        (0..len)
            .step_by(size.max(1) as usize)
            .map(move |from| (from..(from + size).min(len)).collect())
    }

    /// The newest window of a series.
    pub(super) fn last_of(&self, series: usize) -> Option<Place> {
        let at = self
            .spans
            .iter()
            .rposition(|span| span.first.series == series)?;
        let end = self.spans.get(at + 1).map_or(self.all, |span| span.before);
        let span = &self.spans[at];
        let row = span.first.row + (end - span.before - 1) as usize;
        Some(Place { row, ..span.first })
    }

    /// Series that have a window.
    pub(super) fn series(&self) -> usize {
        let mut numbers: Vec<usize> = self.spans.iter().map(|span| span.first.series).collect();
        numbers.dedup();
        numbers.len()
    }
}
