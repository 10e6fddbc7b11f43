//! One module per command.

pub(crate) mod forward;
pub(crate) mod models;
pub(crate) mod tabular;
pub(crate) mod train;
pub(crate) mod tune;
