//! Which nodes and edges of an attribution graph matter to the logits.
//!
//! All of it works on the rows of features and then logits, `[features + logits, nodes]`, whose columns are all nodes in the order of features, errors,
//! tokens, logits: what errors and tokens are made of is not asked. As in the package `circuit-tracer`, a row's entries count by their share of its absolute
//! sum.

use densely_core::{Error, Result, check};
use tch::{Kind, Tensor};

use super::attribution::Sizes;
use super::numbers;

/// Least absolute sum of a row: one of zeros stays one.
const LEAST: f64 = 1e-10;

/// What is kept of a graph.
#[derive(Debug)]
pub struct Pruned {
    /// Which nodes, `[nodes]` of kind bool.
    pub nodes: Tensor,
    /// Which edges, `[features + logits, nodes]` of kind bool.
    pub edges: Tensor,
    /// Of each node the share of all influence that it and the more influential ones have, `[nodes]`: a node is kept where it is small.
    pub cumulative: Tensor,
}

/// How much of a graph goes through features.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Scores {
    /// Share of the influence of tokens on logits, of that of tokens and errors.
    pub replacement: f64,
    /// Share of what nodes are made of that is no error, weighted by their influence.
    pub completeness: f64,
}

/// Numbers that are read at once where all of a graph's are looked through.
const SLICE: i64 = 1 << 16;

/// Entries as shares of their row's absolute sum.
fn shares(rows: &Tensor) -> Result<Tensor> {
    into_shares(rows.f_abs()?)
}

/// The same of what is 0 or above, in its place.
fn into_shares(mut sizes: Tensor) -> Result<Tensor> {
    let sums = sizes.f_sum_dim_intlist([1i64].as_slice(), true, None::<Kind>)?;
    let _ = sizes.f_div_(&sums.f_clamp_min(LEAST)?)?;
    Ok(sizes)
}

/// Multiplies rows and columns of nodes that are gone by zero, in place.
fn keep(sizes: &Sizes, xs: &mut Tensor, nodes: &Tensor) -> Result<()> {
    let nodes = nodes.f_to_kind(xs.kind())?;
    let _ = xs.f_mul_(&with_rows(sizes, &nodes)?.f_unsqueeze(1)?)?; // [rows, 1]
    let _ = xs.f_mul_(&nodes.f_unsqueeze(0)?)?; // [1, nodes]
    Ok(())
}

/// Weights of the logits as a row of all nodes, `[nodes]`.
fn start(sizes: &Sizes, rows: &Tensor, probabilities: &[f64]) -> Result<Tensor> {
    check::shape(
        "rows",
        rows,
        &[Some(sizes.rows() as i64), Some(sizes.nodes() as i64)],
    )?;
    if probabilities.len() != sizes.logits {
        let reason = format!(
            "must be one for each of {} logits, got {}",
            sizes.logits,
            probabilities.len()
        );
        return Err(Error::config("probabilities", reason));
    }
    let own = Tensor::f_from_slice(probabilities)?.f_to_kind(rows.kind())?;
    let before = (sizes.nodes() - sizes.logits) as i64;
    let none = Tensor::f_zeros([before], (rows.kind(), rows.device()))?;
    Ok(Tensor::f_cat(&[none, own.f_to(rows.device())?], 0)?)
}

/// Of numbers `[nodes]`, those of the nodes that have rows.
fn with_rows(sizes: &Sizes, xs: &Tensor) -> Result<Tensor> {
    let features = xs.f_narrow(0, 0, sizes.features as i64)?;
    let logits = xs.f_narrow(
        0,
        (sizes.nodes() - sizes.logits) as i64,
        sizes.logits as i64,
    )?;
    Ok(Tensor::f_cat(&[features, logits], 0)?)
}

/// w·(A + A² + …) for shares A.
fn summed(sizes: &Sizes, shares: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let mut flow = weights.shallow_clone();
    let mut sum = weights.f_zeros_like()?;
    // No way through a graph without circles has more edges than nodes.
    for _ in 0..=sizes.nodes() {
        flow = shares.f_tr()?.f_mv(&with_rows(sizes, &flow)?)?; // [nodes]
        if flow.f_any()?.f_int64_value(&[])? == 0 {
            return Ok(sum);
        }
        sum = sum.f_add(&flow)?;
    }
    let reason = "hold a circle, or what is no number: influence does not come to an end";
    Err(Error::config("rows", reason))
}

/// Influence of each node on the logits, over all ways through the graph, `[nodes]`.
///
/// # Shapes
/// `rows`: `[features + logits, nodes]`.
/// # Errors
/// [`Error::Shape`] and [`Error::Config`] when sizes do not fit or the graph has a circle.
pub fn influence(sizes: &Sizes, rows: &Tensor, probabilities: &[f64]) -> Result<Tensor> {
    let weights = start(sizes, rows, probabilities)?;
    summed(sizes, &shares(rows)?, &weights)
}

/// Influence of all features by the rows of the logits and of those features that have one, which stand in `order`.
pub(super) fn partial_influence(
    rows: &Tensor,
    order: &[usize],
    probabilities: &[f64],
) -> Result<Vec<f64>> {
    let shares = shares(rows)?;
    let logits = Tensor::f_from_slice(probabilities)?.f_to_kind(rows.kind())?;
    let places: Vec<i64> = order.iter().map(|at| *at as i64).collect();
    let places = Tensor::f_from_slice(&places)?;
    let none = Tensor::f_zeros([order.len() as i64], (rows.kind(), rows.device()))?;
    let mut flow = Tensor::f_cat(&[&logits, &none], 0)?; // [rows]
    let mut sum = Tensor::f_zeros([rows.size()[1]], (rows.kind(), rows.device()))?;
    // One step leads a layer down at least: no way is longer than there are rows.
    for _ in 0..=order.len() + 1 {
        let next = shares.f_tr()?.f_mv(&flow)?; // [columns]
        if next.f_any()?.f_int64_value(&[])? == 0 {
            break;
        }
        sum = sum.f_add(&next)?;
        let own = next.f_index_select(0, &places)?;
        flow = Tensor::f_cat(&[&logits.f_zeros_like()?, &own], 0)?;
    }
    numbers(&sum)
}

/// The numbers that are not zero.
fn nonzero(scores: &Tensor) -> Result<Vec<f64>> {
    let count = scores.f_count_nonzero(None::<i64>)?.f_int64_value(&[])?;
    let mut found = Vec::with_capacity(count as usize);
    let flat = scores.f_reshape([-1])?;
    let all = flat.numel() as i64;
    for start in (0..all).step_by(SLICE as usize) {
        let some = numbers(&flat.f_narrow(0, start, SLICE.min(all - start))?)?;
        found.extend(some.into_iter().filter(|score| *score != 0.0));
    }
    Ok(found)
}

/// The score down to which the largest ones make up a share of all. Scores are 0 or above, and most edges' are 0: those come last, and are not sorted.
///
/// They are taken out slice by slice: a mask over all of them takes sixteen bytes for each, and a sorted tensor brings its order along.
fn threshold(scores: &Tensor, share: f64) -> Result<f64> {
    let mut sorted = nonzero(scores)?;
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    let total: f64 = sorted.iter().sum();
    let mut sum = 0.0;
    for score in &sorted {
        sum += score;
        if sum / total >= share {
            return Ok(*score);
        }
    }
    // Nothing is left but zeros.
    Ok(0.0)
}

/// Keeps the nodes that have `node_share` of all influence, then the edges that have `edge_share` of what is left; nodes that lose all edges out of them, and
/// features that lose all edges into them, go too. Tokens and logits always stay.
///
/// # Shapes
/// `rows`: `[features + logits, nodes]`.
/// # Errors
/// Those of [`influence`]; [`Error::Config`] for a share outside 0 to 1.
pub fn prune(
    sizes: &Sizes,
    rows: &Tensor,
    probabilities: &[f64],
    node_share: f64,
    edge_share: f64,
) -> Result<Pruned> {
    for (name, share) in [("node_share", node_share), ("edge_share", edge_share)] {
        if !(0.0..=1.0).contains(&share) {
            let reason = format!("must lie in 0 to 1, got {share}");
            return Err(Error::config(name, reason));
        }
    }
    let _guard = tch::no_grad_guard();
    let weights = start(sizes, rows, probabilities)?;
    let influence = summed(sizes, &shares(rows)?, &weights)?;
    // Features and errors: what may go.
    let inner = (sizes.features + sizes.errors) as i64;
    let rest = sizes.nodes() as i64 - inner;
    let always = Tensor::f_ones([rest], (Kind::Bool, rows.device()))?;
    let kept = influence.f_ge(threshold(&influence, node_share)?)?;
    let mut nodes = Tensor::f_cat(&[&kept.f_narrow(0, 0, inner)?, &always], 0)?;

    // In place, step by step: each of these is as large as the graph.
    let mut left = rows.f_abs()?;
    keep(sizes, &mut left, &nodes)?;
    let mut scores = into_shares(left)?;
    let outputs = summed(sizes, &scores, &weights)?.f_add(&weights)?;
    let _ = scores.f_mul_(&with_rows(sizes, &outputs)?.f_unsqueeze(1)?)?;
    let mut edges = scores.f_ge(threshold(&scores, edge_share)?)?;
    drop(scores);

    let features = sizes.features as i64;
    // Nothing is asked of what feeds an error.
    let errors = Tensor::f_ones([sizes.errors as i64], (Kind::Bool, rows.device()))?;
    loop {
        let read = edges.f_any_dim(0, false)?.f_narrow(0, 0, inner)?; // [features + errors]
        let fed = edges.f_narrow(0, 0, features)?.f_any_dim(1, false)?; // [features]
        let fed = Tensor::f_cat(&[&fed, &errors], 0)?;
        let now = nodes
            .f_narrow(0, 0, inner)?
            .f_logical_and(&read)?
            .f_logical_and(&fed)?;
        let now = Tensor::f_cat(&[&now, &always], 0)?;
        let same = now.f_equal(&nodes)?;
        nodes = now;
        if same {
            break;
        }
        keep(sizes, &mut edges, &nodes)?;
    }

    let (sorted, order) = influence.f_sort(0, true)?;
    let shares = sorted
        .f_cumsum(0, None::<Kind>)?
        .f_div(&sorted.f_sum(None::<Kind>)?)?;
    let cumulative = influence.f_zeros_like()?.f_scatter(0, &order, &shares)?;
    Ok(Pruned {
        nodes,
        edges,
        cumulative,
    })
}

/// How much of a graph goes through features and not through errors.
///
/// # Shapes
/// `rows`: `[features + logits, nodes]`.
/// # Errors
/// Those of [`influence`].
pub fn scores(sizes: &Sizes, rows: &Tensor, probabilities: &[f64]) -> Result<Scores> {
    let weights = start(sizes, rows, probabilities)?;
    let shares = shares(rows)?;
    let influence = summed(sizes, &shares, &weights)?;
    let sum = |xs: &Tensor, first: usize, count: usize| -> Result<f64> {
        Ok(numbers(&xs.f_narrow(0, first as i64, count as i64)?)?
            .iter()
            .sum())
    };
    let errors = sum(&influence, sizes.features, sizes.errors)?;
    let tokens = sum(&influence, sizes.features + sizes.errors, sizes.tokens)?;
    let missed = shares
        .f_narrow(1, sizes.features as i64, sizes.errors as i64)?
        .f_sum_dim_intlist([1i64].as_slice(), false, None::<Kind>)?;
    let outputs = influence.f_add(&weights)?;
    let own = numbers(&with_rows(sizes, &outputs)?)?;
    let missed: f64 = own.iter().zip(numbers(&missed)?).map(|(w, m)| w * m).sum();
    // Errors and tokens are made of nothing that is an error.
    let total = sum(&outputs, 0, sizes.nodes())?;
    Ok(Scores {
        replacement: tokens / (tokens + errors).max(LEAST),
        completeness: 1.0 - missed / total.max(LEAST),
    })
}
