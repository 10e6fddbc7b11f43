//! Temporary.
#[path = "suite/meshes.rs"]
mod meshes;
#[path = "suite/scenes.rs"]
mod scenes;
#[path = "suite/signals.rs"]
mod signals;
