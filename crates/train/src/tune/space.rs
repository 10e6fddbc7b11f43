//! What a study may choose, and how it chooses: at random first, then by tree-structured Parzen estimators; or every point of a grid.
//!
//! Paper: Bergstra, Bardenet, Bengio, Kégl 2011, "Algorithms for Hyper-Parameter Optimization". Each setting has
//! estimators of its own, a tenth of the trials counts as good, and the best of 24 draws is proposed: the rules of
//! Optuna's default sampler, with which the TabM paper tuned. The estimators are those of the crate `tpe`.

use std::collections::BTreeMap;

use densely_core::{Error, Result};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::machine::step_seed;

/// Most points of a grid; nobody trains more.
const MAX_POINTS: u64 = 100_000;

/// The settings of a trial, by name (`train.optimizer.lr`).
pub type Choice = BTreeMap<String, Value>;

/// The range of one setting, as a recipe writes it: one of the fields, and `step` beside `int`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RangeSettings {
    /// Any number between two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uniform: Option<[f64; 2]>,
    /// Any number between two above 0, by its logarithm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<[f64; 2]>,
    /// A whole number between two, both included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub int: Option<[i64; 2]>,
    /// Distance of the whole numbers, from the lower end on; 1 when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<i64>,
    /// Zero or not is chosen first; if not, any number between two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zero_or: Option<[f64; 2]>,
    /// Zero or not is chosen first; if not, any number between two above 0, by its logarithm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zero_or_log: Option<[f64; 2]>,
    /// One of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice: Option<Vec<Value>>,
}

impl RangeSettings {
    /// Any number above 0 between two, by its logarithm.
    pub fn log(low: f64, high: f64) -> Self {
        Self {
            log: Some([low, high]),
            ..Self::default()
        }
    }

    /// A whole number between two, `step` apart.
    pub fn int(low: i64, high: i64, step: i64) -> Self {
        Self {
            int: Some([low, high]),
            step: (step != 1).then_some(step),
            ..Self::default()
        }
    }

    /// Zero, or any number between two.
    pub fn zero_or(low: f64, high: f64) -> Self {
        Self {
            zero_or: Some([low, high]),
            ..Self::default()
        }
    }

    /// Zero, or any number above 0 between two, by its logarithm.
    pub fn zero_or_log(low: f64, high: f64) -> Self {
        Self {
            zero_or_log: Some([low, high]),
            ..Self::default()
        }
    }

    fn check(&self, name: &str) -> Result<Range> {
        let wrong = |reason: String| Err(Error::config(format!("tune.space.{name}"), reason));
        let given = [
            self.uniform.map(|ends| (false, false, ends)),
            self.log.map(|ends| (false, true, ends)),
            self.zero_or.map(|ends| (true, false, ends)),
            self.zero_or_log.map(|ends| (true, true, ends)),
        ];
        let count = given.iter().flatten().count()
            + usize::from(self.int.is_some())
            + usize::from(self.choice.is_some());
        if count != 1 {
            let kinds = "`uniform`, `log`, `int`, `zero_or`, `zero_or_log` or `choice`";
            return wrong(format!("must hold exactly one of {kinds}, got {count}"));
        }
        if self.step.is_some() && self.int.is_none() {
            return wrong("`step` is for `int`".to_owned());
        }
        if let Some((or_zero, log, [low, high])) = given.into_iter().flatten().next() {
            if !(low < high && low.is_finite() && high.is_finite()) {
                return wrong(format!(
                    "must go from a number to a larger one, got [{low}, {high}]"
                ));
            }
            if log && low <= 0.0 {
                return wrong(format!(
                    "numbers by their logarithm must be above 0, got {low}"
                ));
            }
            return Ok(Range::Number {
                low,
                high,
                log,
                or_zero,
            });
        }
        if let Some([low, high]) = self.int {
            let step = self.step.unwrap_or(1);
            let span = high.checked_sub(low);
            return match span {
                _ if step < 1 => wrong(format!("`step` must be at least 1, got {step}")),
                Some(span @ 0..=1_000_000_000) => Ok(Range::Int {
                    low,
                    step,
                    last: span / step,
                }),
                Some(_) if high > low => wrong(format!("[{low}, {high}] is too wide")),
                _ => wrong(format!("must not go down, got [{low}, {high}]")),
            };
        }
        let values = self.choice.clone().unwrap_or_default();
        if values.is_empty() {
            return wrong("`choice` must hold at least one value".to_owned());
        }
        if let Some(at) = (1..values.len()).find(|at| values[..*at].contains(&values[*at])) {
            return wrong(format!("`choice` holds {} twice", values[at]));
        }
        Ok(Range::Choice(values))
    }
}

/// A range that was checked.
#[derive(Debug, Clone, PartialEq)]
enum Range {
    Number {
        low: f64,
        high: f64,
        log: bool,
        or_zero: bool,
    },
    /// `low + i · step` for i from 0 to `last`.
    Int {
        low: i64,
        step: i64,
        last: i64,
    },
    Choice(Vec<Value>),
}

/// A number on the axis along which the estimators work, and the other way round.
impl Range {
    /// Start and end of the axis.
    fn axis(&self) -> (f64, f64) {
        match self {
            Self::Number {
                low,
                high,
                log: true,
                ..
            } => (low.ln(), high.ln()),
            Self::Number { low, high, .. } => (*low, *high),
            Self::Int { last, .. } => (-0.5, *last as f64 + 0.5),
            Self::Choice(values) => (0.0, values.len() as f64),
        }
    }

    fn value(&self, place: f64) -> Value {
        match self {
            Self::Number { low, high, log, .. } => {
                let x = if *log { place.exp() } else { place };
                // Five digits are more than a study can tell apart, and people read them.
                let x = format!("{x:.4e}").parse().unwrap_or(x);
                x.clamp(*low, *high).into()
            }
            Self::Int { low, step, last } => {
                (low + step * (place.round() as i64).clamp(0, *last)).into()
            }
            Self::Choice(values) => values[(place as usize).min(values.len() - 1)].clone(),
        }
    }

    /// Where `value` lies; nowhere when it is the zero beside the range.
    fn place(&self, value: &Value) -> Option<f64> {
        let place = match self {
            Self::Number { or_zero: true, .. } if value.as_f64() == Some(0.0) => return None,
            Self::Number { log: true, .. } => value.as_f64()?.ln(),
            Self::Number { .. } => value.as_f64()?,
            Self::Int { low, step, .. } => ((value.as_i64()? - low) / step) as f64,
            Self::Choice(values) => values.iter().position(|other| other == value)? as f64,
        };
        let (start, end) = self.axis();
        Some(place.clamp(start, end.next_down()))
    }

    /// Values, where they can be counted.
    const fn points(&self) -> Option<u64> {
        match self {
            Self::Number { .. } => None,
            Self::Int { last, .. } => Some(*last as u64 + 1),
            Self::Choice(values) => Some(values.len() as u64),
        }
    }

    const fn or_zero(&self) -> bool {
        matches!(self, Self::Number { or_zero: true, .. })
    }

    /// The lowest and the highest value, or all of a choice.
    fn ends(&self) -> Vec<Value> {
        if let Self::Choice(values) = self {
            return values.clone();
        }
        let (start, end) = self.axis();
        vec![self.value(start), self.value(end)]
    }
}

/// A finished trial, as the proposals see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tried {
    /// Its settings.
    pub choice: Choice,
    /// Its score, the lower the better; infinite when it failed.
    pub loss: f64,
}

/// The ranges of all settings that a study may choose.
#[derive(Debug, Clone, PartialEq)]
pub struct Space {
    ranges: BTreeMap<String, Range>,
}

impl Space {
    /// Checks `settings`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the range that is empty, contradictory or has a logarithm of 0.
    pub fn new(settings: &BTreeMap<String, RangeSettings>) -> Result<Self> {
        if settings.is_empty() {
            return Err(Error::config(
                "tune.space",
                "must hold at least one setting",
            ));
        }
        let check = |(name, range): (&String, &RangeSettings)| {
            range.check(name).map(|range| (name.clone(), range))
        };
        let ranges = settings.iter().map(check).collect::<Result<_>>()?;
        Ok(Self { ranges })
    }

    /// Fails unless every range can stand in `base`: the setting exists, both ends are of its type, and `valid` takes them.
    ///
    /// # Errors
    /// [`Error::Config`] naming the setting.
    pub fn check<T: DeserializeOwned>(
        &self,
        base: &Value,
        valid: impl Fn(&T) -> Result<()>,
    ) -> Result<()> {
        for (name, range) in &self.ranges {
            for value in range.ends() {
                let settings = apply(base, &BTreeMap::from([(name.clone(), value)]))?;
                valid(&settings)
                    .map_err(|e| Error::config(format!("tune.space.{name}"), e.to_string()))?;
            }
        }
        Ok(())
    }

    /// Points of the grid of all values.
    ///
    /// # Errors
    /// [`Error::Config`] naming a range between whose ends lie more numbers than can be counted, and for more than 100,000 points.
    pub fn points(&self) -> Result<u64> {
        let mut points: u64 = 1;
        for (name, range) in &self.ranges {
            let Some(count) = range.points() else {
                let reason = "a grid needs values that can be counted: take `choice`, such as `{ choice = [0.0001, 0.001] }`, or `int`";
                return Err(Error::config(format!("tune.space.{name}"), reason));
            };
            points = points.saturating_mul(count);
        }
        if points > MAX_POINTS {
            let reason = format!(
                "a grid may have {MAX_POINTS} points, this one has {points}: take fewer values, or the method `tpe`"
            );
            return Err(Error::config("tune.space", reason));
        }
        Ok(points)
    }

    /// The settings of trial `number` of a grid: every point once, in an order that `seed` shuffles.
    ///
    /// # Errors
    /// Those of [`points`](Self::points); [`Error::Config`] for a number that the grid does not have.
    pub fn point(&self, seed: u64, number: u64) -> Result<Choice> {
        let points = self.points()?;
        let mut order: Vec<u64> = (0..points).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(step_seed(seed, 0) as u64));
        let Some(mut rest) = order.get(number as usize).copied() else {
            let reason = format!("the grid has {points} points and none with the number {number}");
            return Err(Error::config("tune.space", reason));
        };
        let mut choice = Choice::new();
        for (name, range) in self.ranges.iter().rev() {
            let count = range.points().unwrap_or(1);
            choice.insert(name.clone(), range.value((rest % count) as f64));
            rest /= count;
        }
        Ok(choice)
    }

    /// The settings of trial `number`: at random for the first `startup` trials, then where good ones of `tried` are
    /// dense and bad ones are not. A function of its arguments, so that a study can be broken off and go on.
    ///
    /// # Errors
    /// [`Error::Config`] when `tried` holds a loss that is not a number.
    pub fn propose(&self, seed: u64, number: u64, startup: u64, tried: &[Tried]) -> Result<Choice> {
        let mut rng = ChaCha8Rng::seed_from_u64(step_seed(seed, number) as u64);
        let random = number < startup || tried.is_empty();
        let mut draw = |start: f64, end: f64, classes: bool, places: Vec<f64>| -> Result<f64> {
            if random {
                return Ok(rng.random_range(start..end));
            }
            let wrong = |text: String| Error::config("tune", text);
            let range = tpe::range(start, end).map_err(|e| wrong(e.to_string()))?;
            let estimator = if classes {
                tpe::histogram_estimator()
            } else {
                tpe::parzen_estimator()
            };
            let mut optimizer = tpe::TpeOptimizer::new(estimator, range);
            for (place, tried) in places.into_iter().zip(tried) {
                let told = optimizer.tell(place, tried.loss);
                told.map_err(|e| wrong(e.to_string()))?;
            }
            let Ok(place) = optimizer.ask(&mut rng);
            Ok(place)
        };
        let mut choice = Choice::new();
        for (name, range) in &self.ranges {
            // A trial that did not use the setting does not count for it.
            let places = |of: &dyn Fn(Option<f64>) -> f64| {
                let place =
                    |tried: &Tried| tried.choice.get(name).map(|value| of(range.place(value)));
                tried
                    .iter()
                    .map(|tried| place(tried).unwrap_or(f64::NAN))
                    .collect()
            };
            let zero = range.or_zero()
                && draw(
                    0.0,
                    2.0,
                    true,
                    places(&|place| f64::from(u8::from(place.is_some()))),
                )? < 1.0;
            let value = if zero {
                0.0.into()
            } else {
                let (start, end) = range.axis();
                let classes = matches!(range, Range::Choice(_));
                range.value(draw(
                    start,
                    end,
                    classes,
                    places(&|place| place.unwrap_or(f64::NAN)),
                )?)
            };
            choice.insert(name.clone(), value);
        }
        Ok(choice)
    }
}

/// `base` with the settings of `choice` in their places.
///
/// # Errors
/// [`Error::Config`] naming the setting that does not exist or is of another type; settings of `data` are refused,
/// since all trials must see the same rows.
pub fn apply<T: DeserializeOwned>(base: &Value, choice: &Choice) -> Result<T> {
    let mut whole = base.clone();
    for (name, value) in choice {
        let wrong = |reason: String| Error::config(format!("tune.space.{name}"), reason);
        if !["model", "train"].contains(&name.split('.').next().unwrap_or_default()) {
            return Err(wrong("must be a setting of `model` or `train`".to_owned()));
        }
        if !name.contains('.') {
            return Err(wrong(UNNAMED.to_owned()));
        }
        set(&mut whole, name, value).map_err(wrong)?;
    }
    serde_json::from_value(whole).map_err(|e| {
        let place = match choice.keys().next() {
            Some(name) if choice.len() == 1 => format!("tune.space.{name}"),
            _ => "tune.space".to_owned(),
        };
        Error::config(place, e.to_string())
    })
}

const UNNAMED: &str = "must name a setting, such as `train.optimizer.lr`";

/// Puts `value` at `path`, making tables on the way.
fn set(whole: &mut Value, path: &str, value: &Value) -> std::result::Result<(), String> {
    let mut place = whole;
    for part in path.split('.') {
        if part.is_empty() {
            return Err(UNNAMED.to_owned());
        }
        if place.is_null() {
            *place = Value::Object(serde_json::Map::new());
        }
        let Value::Object(table) = place else {
            return Err(format!(
                "there is nothing below the setting before `{part}`"
            ));
        };
        place = table.entry(part).or_insert(Value::Null);
    }
    *place = value.clone();
    Ok(())
}
