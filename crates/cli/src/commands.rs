//! One module per command.

pub(crate) mod ctr;
pub(crate) mod field;
pub(crate) mod forecast;
pub(crate) mod forward;
pub(crate) mod interp;
pub(crate) mod lm;
pub(crate) mod models;
pub(crate) mod restore;
#[cfg(feature = "serve")]
pub(crate) mod serve;
pub(crate) mod tabred;
pub(crate) mod tabular;
pub(crate) mod train;
pub(crate) mod tune;
pub(crate) mod vision;
