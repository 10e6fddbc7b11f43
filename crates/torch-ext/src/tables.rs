//! Steps on parameters of which only some rows have a gradient, without a gradient as large as the table. For f32 on the CPU.

use tch::Tensor;

use crate::address;
use crate::bridge::ffi;

/// The gradient of a parameter.
#[derive(Debug, Clone, Copy)]
pub enum Gradient<'a> {
    /// None but for the penalty.
    Zero,
    /// Of every value.
    Dense(&'a Tensor),
    /// Of some rows.
    Rows {
        /// i64 `[n]`, ascending.
        index: &'a Tensor,
        /// `[n, dim]`.
        values: &'a Tensor,
        /// More `l2` of each of these rows, `[n]`.
        extra: Option<&'a Tensor>,
    },
}

impl Gradient<'_> {
    /// Addresses of dense, index, values and extra.
    fn addresses(&self) -> [usize; 4] {
        match *self {
            Self::Zero => [0; 4],
            Self::Dense(dense) => [address(dense), 0, 0, 0],
            Self::Rows {
                index,
                values,
                extra,
            } => [0, address(index), address(values), extra.map_or(0, address)],
        }
    }
}

/// What is added to the gradient g of a value w: l2 w + l1 sign(w).
#[derive(Debug, Clone, Copy, Default)]
pub struct Penalty {
    /// Of |w|.
    pub l1: f64,
    /// Of w²/2.
    pub l2: f64,
    /// Whether rows without a gradient have it too.
    pub all: bool,
}

/// The sum of the squares of a parameter's gradient with its penalty.
///
/// # Errors
/// A sentence, when shapes or kinds do not fit.
pub fn squares(param: &Tensor, grad: Gradient, penalty: Penalty) -> Result<f64, String> {
    let [dense, index, values, extra] = grad.addresses();
    let Penalty { l1, l2, all } = penalty;
    // SAFETY: the addresses are those of tensors borrowed for the call, or 0.
    unsafe { ffi::table_squares(address(param), dense, index, values, extra, l1, l2, all) }
        .map_err(|e| e.what().to_owned())
}

/// Numbers of a step; Adam's are those of PyTorch, `root` √(1 - β2^t).
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Factor on the gradient, penalty included.
    pub scale: f64,
    /// Decay of the two moments; not Adagrad's.
    pub betas: [f64; 2],
    /// lr / (1 - β1^t), or Adagrad's lr.
    pub step: f64,
    /// √(1 - β2^t); not Adagrad's.
    pub root: f64,
    /// Added to the denominator.
    pub eps: f64,
}

/// One step of Adam where there is a first moment, of Adagrad where not; on every row where the penalty is for all of them, else on
/// those with a gradient.
///
/// # Errors
/// A sentence, when shapes or kinds do not fit.
pub fn step(
    param: &Tensor,
    grad: Gradient,
    moments: (Option<&Tensor>, &Tensor),
    penalty: Penalty,
    step: Step,
) -> Result<(), String> {
    let [dense, index, values, extra] = grad.addresses();
    let Step {
        scale,
        betas: [beta1, beta2],
        step,
        root,
        eps,
    } = step;
    let numbers = [penalty.l1, penalty.l2, scale, beta1, beta2, step, root, eps];
    let (first, second) = (moments.0.map_or(0, address), address(moments.1));
    // SAFETY: the addresses are those of tensors borrowed for the call, or 0.
    unsafe {
        ffi::table_step(
            address(param),
            dense,
            index,
            values,
            extra,
            first,
            second,
            &numbers,
            moments.0.is_none(),
            penalty.all,
        )
    }
    .map_err(|e| e.what().to_owned())
}
