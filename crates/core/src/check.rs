//! Checks at public doors. Each names the thing, what was expected and what came.

use tch::{Kind, Tensor};

use crate::{Error, Result};

/// Fails unless `xs` has the given sizes; `None` stands for any size.
///
/// # Errors
/// [`Error::Shape`] with the expected sizes (`_` for any) and those that came.
pub fn shape(what: &str, xs: &Tensor, expected: &[Option<i64>]) -> Result<()> {
    let got = xs.size();
    let fits = got.len() == expected.len()
        && got
            .iter()
            .zip(expected)
            .all(|(got, want)| want.is_none_or(|want| want == *got));
    if fits {
        return Ok(());
    }
    let words: Vec<String> = expected
        .iter()
        .map(|n| n.map_or_else(|| "_".to_owned(), |n| n.to_string()))
        .collect();
    Err(Error::Shape {
        what: what.to_owned(),
        expected: format!("[{}]", words.join(", ")),
        got: format!("{got:?}"),
    })
}

/// Fails unless `xs` has the sizes of `like`.
///
/// # Errors
/// [`Error::Shape`] with both.
pub fn same_shape(what: &str, xs: &Tensor, like: &Tensor) -> Result<()> {
    let expected: Vec<Option<i64>> = like.size().into_iter().map(Some).collect();
    shape(what, xs, &expected)
}

/// What to say of a tensor that is needed and did not come.
pub fn absent(what: &str) -> Error {
    Error::Shape {
        what: what.to_owned(),
        expected: "a tensor".to_owned(),
        got: "none".to_owned(),
    }
}

/// Fails unless `xs` has the given kind.
///
/// # Errors
/// [`Error::Shape`] with both kinds.
pub fn kind(what: &str, xs: &Tensor, expected: Kind) -> Result<()> {
    if xs.kind() == expected {
        return Ok(());
    }
    Err(Error::Shape {
        what: what.to_owned(),
        expected: format!("{expected:?}"),
        got: format!("{:?}", xs.kind()),
    })
}

/// Fails unless `xs` has a floating-point kind.
///
/// # Errors
/// [`Error::Shape`] with its kind.
pub fn floating(what: &str, xs: &Tensor) -> Result<()> {
    if xs.is_floating_point() {
        return Ok(());
    }
    Err(Error::Shape {
        what: what.to_owned(),
        expected: "floating-point numbers".to_owned(),
        got: format!("{:?}", xs.kind()),
    })
}

/// Fails unless `value` is at least 1.
///
/// # Errors
/// [`Error::Config`] naming the field.
pub fn positive(field: &str, value: i64) -> Result<()> {
    if value >= 1 {
        return Ok(());
    }
    Err(Error::config(
        field,
        format!("must be at least 1, got {value}"),
    ))
}

/// Fails unless `value` is above 0 and finite.
///
/// # Errors
/// [`Error::Config`] naming the field.
pub fn above_zero(field: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(Error::config(
        field,
        format!("must be above 0, got {value}"),
    ))
}

/// Fails unless `value` is a probability below 1, as dropout takes it.
///
/// # Errors
/// [`Error::Config`] naming the field.
pub fn dropout(field: &str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::config(
        field,
        format!("must lie in [0, 1), got {value}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shape_names_both_sides() {
        let xs = Tensor::zeros([2, 3], tch::kind::FLOAT_CPU);
        assert!(shape("x", &xs, &[None, Some(3)]).is_ok());
        let error = shape("x", &xs, &[None, Some(4)])
            .expect_err("3 is not 4")
            .to_string();
        assert_eq!(error, "`x`: expected [_, 4], got [2, 3]");
        assert!(shape("x", &xs, &[None]).is_err());
        assert!(same_shape("x", &xs, &xs.zeros_like()).is_ok());
        let error = same_shape("x", &xs, &xs.transpose(0, 1)).expect_err("it is turned");
        assert_eq!(error.to_string(), "`x`: expected [3, 2], got [2, 3]");
        assert!(floating("x", &xs).is_ok());
        let error = floating("x", &xs.to_kind(Kind::Int64)).expect_err("whole numbers");
        assert_eq!(
            error.to_string(),
            "`x`: expected floating-point numbers, got Int64"
        );
        assert_eq!(absent("x").to_string(), "`x`: expected a tensor, got none");
    }

    #[test]
    fn ranges_are_half_open() {
        assert!(dropout("p", 0.0).is_ok());
        assert!(dropout("p", 1.0).is_err());
        assert!(dropout("p", f64::NAN).is_err());
        assert!(positive("k", 0).is_err());
        assert!(above_zero("x", 1e-300).is_ok());
        for value in [0.0, -1.0, f64::INFINITY, f64::NAN] {
            assert!(above_zero("x", value).is_err(), "{value}");
        }
    }
}
