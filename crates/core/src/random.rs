//! Draws from libtorch's generator that depend on a seed and on nothing else.

use std::sync::{Mutex, PoisonError};

use tch::Tensor;

static GENERATOR: Mutex<()> = Mutex::new(());

/// Seeds libtorch's generators and runs `draw`, so that what it draws is a function of `seed`.
///
/// libtorch has one CPU generator per process. Threads that draw at the same time would disturb each other's
/// sequences, so this holds a lock meanwhile; do not nest it.
pub fn seeded<T>(seed: i64, draw: impl FnOnce() -> T) -> T {
    // A panic in another thread's `draw` leaves nothing behind that seeding anew does not mend.
    let _guard = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed);
    draw()
}

/// A number from libtorch's global generator, to seed something else with.
pub fn draw_seed() -> i64 {
    Tensor::randint(i64::MAX, [1], tch::kind::INT64_CPU).int64_value(&[0])
}
