//! Checks of settings that several transforms share.

use densely_core::{Error, Result, check};

/// Longest side of a picture.
pub(crate) const MAX_SIDE: i64 = 65_535;

/// A side in pixels.
pub(crate) fn side(field: &str, value: i64) -> Result<usize> {
    check::positive(field, value)?;
    at_most(field, value, MAX_SIDE)?;
    Ok(value as usize)
}

/// Fails unless `value` is at most `most`.
pub(crate) fn at_most(field: &str, value: i64, most: i64) -> Result<()> {
    if value <= most {
        return Ok(());
    }
    Err(Error::config(
        field,
        format!("must be at most {most}, got {value}"),
    ))
}

/// Fails unless `value` lies between `least` and `most`.
pub(crate) fn within(field: &str, value: f64, least: f64, most: f64) -> Result<()> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::config(
        field,
        format!("must lie in [{least}, {most}], got {value}"),
    ))
}

/// Fails unless `value` lies in [0, 1].
pub(crate) fn probability(field: &str, value: f64) -> Result<()> {
    within(field, value, 0.0, 1.0)
}

/// Fails unless the two are above 0, at most 1 and in order.
pub(crate) fn probability_range(field: &str, value: [f64; 2]) -> Result<()> {
    let [least, most] = value;
    if least > 0.0 && least <= most && most <= 1.0 {
        return Ok(());
    }
    Err(Error::config(
        field,
        format!("must be two numbers above 0 and up to 1 in order, got {value:?}"),
    ))
}

/// Fails unless `value` is at least 0 and finite.
pub(crate) fn not_negative(field: &str, value: f64) -> Result<()> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::config(
        field,
        format!("must be finite and not negative, got {value}"),
    ))
}

/// Fails unless the two are in order and between `least` and `most`.
pub(crate) fn range(field: &str, value: [f64; 2], least: f64, most: f64) -> Result<()> {
    let [low, high] = value;
    if least <= low && low <= high && high <= most {
        return Ok(());
    }
    Err(Error::config(
        field,
        format!("must be two numbers from {least} to {most} in order, got {value:?}"),
    ))
}
