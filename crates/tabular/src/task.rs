//! Loss and prediction of tabular tasks.

use tch::{Kind, Reduction, Tensor};

/// What is predicted.
pub use densely_data_task::Task;

mod densely_data_task {
    /// Placeholder until densely-data has it.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Task {
        Regression,
        Binary,
        Multiclass,
    }
}

/// The mean over rows and members of each member's own loss: squared error for regression, cross-entropy for
/// classes. Never the loss of the averaged prediction, which would train one network instead of k.
///
/// # Shapes
/// `ys`: `[batch, k, d_out]`; `target`: `[batch]`, or `[batch, k]` when each member has rows of its own, f32
/// (standardised) or i64 class numbers; `weight`: the target's shape. Computed in f32 whatever `ys` is.
pub fn members_loss(ys: &Tensor, target: &Tensor, weight: Option<&Tensor>, task: Task) -> Tensor {
    let (batch, k) = (ys.size()[0], ys.size()[1]);
    let ys = if ys.kind() == Kind::Double {
        ys.shallow_clone()
    } else {
        ys.to_kind(Kind::Float)
    };
    let spread = |xs: &Tensor| {
        if xs.dim() == 1 {
            xs.unsqueeze(1).expand([batch, k], false)
        } else {
            xs.shallow_clone()
        }
    };
    let target = spread(target);
    let reduction = if weight.is_some() {
        Reduction::None
    } else {
        Reduction::Mean
    };
    let losses = match task {
        Task::Regression => ys.squeeze_dim(2).mse_loss(&target, reduction),
        Task::Binary | Task::Multiclass => {
            let target = target.reshape([batch * k]);
            ys.flatten(0, 1)
                .cross_entropy_loss(&target, None::<&Tensor>, reduction, -100, 0.0)
        }
    };
    match weight {
        None => losses,
        Some(weight) => {
            let weight = spread(weight);
            (losses.view([batch, k]) * &weight).sum(Kind::Float) / weight.sum(Kind::Float)
        }
    }
}
