//! A bound on what a config may ask for, since it may come from anybody's file.

use densely_core::{Error, Result};

/// Most weights of a part of a network: 4 GiB.
const MOST: i64 = 1 << 30;

/// Refuses sizes whose product is more than the weights of any field; `field` is the one that makes it so.
///
/// # Errors
/// [`Error::Config`] naming it.
pub(crate) fn check_weights(field: &str, sizes: &[i64]) -> Result<()> {
    let all = sizes
        .iter()
        .fold(1i64, |all, size| all.saturating_mul(*size));
    if all <= MOST {
        return Ok(());
    }
    let reason = format!("makes {all} weights or more; at most {MOST} are taken");
    Err(Error::config(field, reason))
}
