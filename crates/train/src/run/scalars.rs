//! Scalars that wait on the device, brought home in one transfer.

use densely_core::Result;
use tch::{Kind, Tensor};

/// The values of `scalars`, in their order.
pub(super) fn read_scalars(scalars: &[&Tensor]) -> Result<Vec<f64>> {
    if scalars.is_empty() {
        return Ok(Vec::new());
    }
    let flat = scalars
        .iter()
        .map(|xs| xs.f_reshape([]))
        .collect::<std::result::Result<Vec<_>, _>>()?;
    let stacked = Tensor::f_stack(&flat, 0)?
        .f_to_device(tch::Device::Cpu)?
        .f_to_kind(Kind::Double)?;
    let mut values = vec![0.0; scalars.len()];
    stacked.f_copy_data(&mut values, scalars.len())?;
    Ok(values)
}
