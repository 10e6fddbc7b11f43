//! Bins of numerical features for piecewise-linear embeddings: at quantiles, or at the cuts of a decision tree.
//!
//! Paper: Gorishniy, Rubachev, Babenko 2022, "On Embeddings for Numerical Features in Tabular Deep Learning",
//! arXiv 2203.05556, sections 3.2.1 and 3.2.2. Follows: `rtdl_num_embeddings.compute_bins` 0.0.12, and for trees
//! scikit-learn 1.9.1, whose sums are added here in its order: the edges are its bits (golden tests).

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use densely_core::{Error, Result, check};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Edges of up to `n_bins` bins per feature, at the quantiles of `x`, without repetitions.
///
/// # Shapes
/// `x`: `[rows, features]` f32, finite; the training rows.
/// # Errors
/// [`Error::Config`] when `n_bins` is below 2 or not below the number of rows; [`Error::Data`] naming the
/// feature when one is constant or not finite.
/// Equal to `rtdl_num_embeddings.compute_bins(x, n_bins)` (golden test). libtorch's quantile takes at most
/// 2²⁴ rows; above, every `⌈rows / 2²⁴⌉`-th row is used, and a warning says so.
pub fn quantile_bins(x: &Tensor, n_bins: i64) -> Result<Vec<Vec<f64>>> {
    let rows = check_table(x, n_bins)?;
    let stride = rows.div_euclid(1 << 24) + 1;
    let x = if rows > 1 << 24 {
        tracing::warn!("bins: quantiles of every {stride}-th of {rows} rows");
        x.slice(0, 0, rows, stride)
    } else {
        x.shallow_clone()
    };
    let levels = Tensor::linspace(0.0, 1.0, n_bins + 1, (Kind::Float, x.device()));
    (0..x.size()[1])
        .map(|feature| {
            let column = x.select(1, feature);
            if column.isfinite().logical_not().any().int64_value(&[]) != 0 {
                return Err(not_finite(feature));
            }
            let edges = column.f_quantile(&levels, 0, false, "linear")?;
            let (edges, _, _) = edges.f_unique_dim(0, true, false, false)?;
            if edges.size()[0] < 2 {
                return Err(constant(feature));
            }
            Ok(Vec::<f64>::try_from(
                edges.to_kind(Kind::Double).to_device(tch::Device::Cpu),
            )?)
        })
        .collect()
}

/// Number of rows, if `x` is a table for which `n_bins` bins can be computed.
fn check_table(x: &Tensor, n_bins: i64) -> Result<i64> {
    check::shape("x", x, &[None, None])?;
    check::kind("x", x, Kind::Float)?;
    let rows = x.size()[0];
    if n_bins < 2 || n_bins >= rows {
        return Err(Error::config(
            "n_bins",
            format!(
                "must be at least 2 and less than the number of training rows ({rows}), got {n_bins}"
            ),
        ));
    }
    Ok(rows)
}

fn not_finite(feature: i64) -> Error {
    let reason = format!("numerical feature {feature} has values that are not finite");
    Error::data("", reason)
}

fn constant(feature: i64) -> Error {
    let reason = format!("numerical feature {feature} has one value only; drop it");
    Error::data("", reason)
}

/// When a tree stops to cut. Defaults are scikit-learn's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TreeOptions {
    /// Fewest rows on each side of a cut.
    pub min_samples_leaf: i64,
    /// Least decrease of impurity by a cut, weighted by the share of rows that it concerns.
    pub min_impurity_decrease: f64,
}

impl Default for TreeOptions {
    fn default() -> Self {
        Self {
            min_samples_leaf: 1,
            min_impurity_decrease: 0.0,
        }
    }
}

impl TreeOptions {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        check::positive("min_samples_leaf", self.min_samples_leaf)?;
        let least = self.min_impurity_decrease;
        if !(least >= 0.0 && least.is_finite()) {
            let reason = format!("must be 0 or a positive number, got {least}");
            return Err(Error::config("min_impurity_decrease", reason));
        }
        Ok(())
    }
}

/// Edges of up to `n_bins` bins per feature, where a decision tree on that feature alone cuts the targets `y`.
///
/// The tree is grown best cut first (by squared error, or by Gini impurity for classes) to at most `n_bins` leaves.
///
/// # Shapes
/// `x`: `[rows, features]` f32, finite; the training rows. `y`: `[rows]`, f32 values for regression or i64
/// class numbers from 0.
/// # Errors
/// Those of [`quantile_bins`], of [`TreeOptions::validate`], and [`Error::Shape`] for targets of another shape or kind.
///
/// # Examples
/// ```
/// use densely_tabular::bins::{TreeOptions, tree_bins};
/// use tch::Tensor;
///
/// let x = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).unsqueeze(1);
/// let y = Tensor::from_slice(&[0i64, 0, 1, 1]);
/// assert_eq!(tree_bins(&x, &y, 3, TreeOptions::default())?, [[1.0, 2.5, 4.0]]);
/// # Ok::<(), densely_core::Error>(())
/// ```
pub fn tree_bins(
    x: &Tensor,
    y: &Tensor,
    n_bins: i64,
    options: TreeOptions,
) -> Result<Vec<Vec<f64>>> {
    let rows = check_table(x, n_bins)?;
    options.validate()?;
    check::shape("y", y, &[Some(rows)])?;
    let target = if y.kind() == Kind::Int64 {
        let classes = Vec::<i64>::try_from(y)?;
        if let Some(class) = classes.iter().find(|class| !(0..rows).contains(*class)) {
            let reason = format!("there is a class number {class}; they must count from 0");
            return Err(Error::data("", reason));
        }
        let count = classes.iter().max().map_or(0, |most| *most as usize + 1);
        Target::Classes(classes.iter().map(|class| *class as usize).collect(), count)
    } else {
        check::kind("y", y, Kind::Float)?;
        Target::Values(Vec::try_from(y.to_kind(Kind::Double))?)
    };
    let features: Vec<i64> = (0..x.size()[1]).collect();
    let threads = tch::get_num_threads().max(1) as usize;
    let mut bins = Vec::new();
    // A column per thread at a time, so that the table is not copied as a whole.
    for some in features.chunks(threads) {
        let columns = some
            .iter()
            .map(|feature| Ok(Vec::<f32>::try_from(x.select(1, *feature))?))
            .collect::<Result<Vec<_>>>()?;
        let edges: Vec<Result<Vec<f64>>> = std::thread::scope(|scope| {
            let (target, mut handles) = (&target, Vec::new());
            for (feature, column) in some.iter().zip(&columns) {
                handles.push(scope.spawn(move || {
                    column_edges(*feature, column, target, n_bins as usize, options)
                }));
            }
            let lost = |_| Err(Error::data("", "a thread that computed bins was lost"));
            let join =
                |handle: std::thread::ScopedJoinHandle<_>| handle.join().unwrap_or_else(lost);
            handles.into_iter().map(join).collect()
        });
        bins.extend(edges.into_iter().collect::<Result<Vec<_>>>()?);
    }
    Ok(bins)
}

/// Targets of the training rows.
enum Target {
    Values(Vec<f64>),
    /// Class numbers, and how many classes there are.
    Classes(Vec<usize>, usize),
}

fn column_edges(
    feature: i64,
    column: &[f32],
    target: &Target,
    n_bins: usize,
    options: TreeOptions,
) -> Result<Vec<f64>> {
    if column.iter().any(|value| !value.is_finite()) {
        return Err(not_finite(feature));
    }
    let mut sorted = column.to_vec();
    sorted.sort_unstable_by(|a, b| compare(*a, *b));
    let (low, high) = (sorted[0], sorted[sorted.len() - 1]);
    if compare(low, high).is_eq() {
        return Err(constant(feature));
    }
    let ties = sorted
        .windows(2)
        .any(|pair| compare(pair[0], pair[1]).is_eq());
    drop(sorted);
    let mut cuts = match target {
        Target::Values(ys) => {
            let root = SquaredError::default().over(ys.iter().copied());
            let rows = column.iter().copied().zip(ys.iter().copied()).collect();
            grow(rows, root, ties, n_bins, options)
        }
        Target::Classes(ys, classes) => {
            let none = Gini {
                rows: 0.0,
                counts: vec![0.0; *classes],
            };
            let root = none.over(ys.iter().copied());
            let rows = column.iter().copied().zip(ys.iter().copied()).collect();
            // Counts are exact in any order.
            grow(rows, root, false, n_bins, options)
        }
    };
    cuts.extend([low, high]);
    cuts.sort_by(|a, b| compare(*a, *b));
    cuts.dedup();
    if cuts.len() == 2 {
        tracing::warn!("bins: numerical feature {feature} has a single bin, it is not cut at all");
    }
    Ok(cuts.into_iter().map(f64::from).collect())
}

/// Of finite numbers; 0 and -0 are equal.
fn compare<T: PartialOrd + Copy>(a: T, b: T) -> Ordering {
    a.partial_cmp(&b).unwrap_or(Ordering::Equal)
}

/// Values closer than this are one value (scikit-learn's `FEATURE_THRESHOLD`, single precision).
const SAME: f32 = 1e-7;

/// Added to a decrease before it is compared, as scikit-learn does.
const EPSILON: f64 = f64::EPSILON;

/// Sums over some rows, and the impurity that they give. Rounding decides between cuts that are equally good, so each
/// sum is taken in scikit-learn's order.
trait Sums: Clone {
    /// A row's target.
    type Target: Copy;
    /// The sums of these rows, in this order, whatever `self` held.
    fn over(&self, ys: impl Iterator<Item = Self::Target>) -> Self;
    /// Number of rows.
    fn rows(&self) -> f64;
    fn add(&mut self, y: Self::Target);
    fn remove(&mut self, y: Self::Target);
    /// Makes `self` what remains of `total` without `left`.
    fn set_rest(&mut self, total: &Self, left: &Self);
    fn impurity(&self) -> f64;
    /// Grows with the decrease of impurity by a cut into these two.
    fn proxy(left: &Self, right: &Self) -> f64;
    /// Impurities of the two parts of a node; `rows` are those of the left one.
    fn parts(total: &Self, left: &Self, right: &Self, rows: &[Row<Self>]) -> (f64, f64);
}

#[derive(Clone, Default)]
struct SquaredError {
    rows: f64,
    sum: f64,
    /// Of the targets' squares; kept for whole nodes only.
    squares: f64,
}

impl Sums for SquaredError {
    type Target = f64;

    fn over(&self, ys: impl Iterator<Item = f64>) -> Self {
        ys.fold(Self::default(), |mut sums, y| {
            sums.add(y);
            sums.squares += y * y;
            sums
        })
    }

    fn rows(&self) -> f64 {
        self.rows
    }

    fn add(&mut self, y: f64) {
        self.rows += 1.0;
        self.sum += y;
    }

    fn remove(&mut self, y: f64) {
        self.rows -= 1.0;
        self.sum -= y;
    }

    fn set_rest(&mut self, total: &Self, left: &Self) {
        self.rows = total.rows - left.rows;
        self.sum = total.sum - left.sum;
    }

    fn impurity(&self) -> f64 {
        let mean = self.sum / self.rows;
        self.squares / self.rows - mean * mean
    }

    fn proxy(left: &Self, right: &Self) -> f64 {
        left.sum * left.sum / left.rows + right.sum * right.sum / right.rows
    }

    fn parts(total: &Self, left: &Self, right: &Self, rows: &[Row<Self>]) -> (f64, f64) {
        let squares = rows.iter().fold(0.0, |sum, (_, y)| sum + y * y);
        let part = |sums: &Self, squares: f64| Self { squares, ..*sums }.impurity();
        (part(left, squares), part(right, total.squares - squares))
    }
}

#[derive(Clone)]
struct Gini {
    rows: f64,
    /// Rows of each class.
    counts: Vec<f64>,
}

impl Sums for Gini {
    type Target = usize;

    fn over(&self, ys: impl Iterator<Item = usize>) -> Self {
        let none = Self {
            rows: 0.0,
            counts: vec![0.0; self.counts.len()],
        };
        ys.fold(none, |mut sums, y| {
            sums.add(y);
            sums
        })
    }

    fn rows(&self) -> f64 {
        self.rows
    }

    fn add(&mut self, y: usize) {
        self.rows += 1.0;
        self.counts[y] += 1.0;
    }

    fn remove(&mut self, y: usize) {
        self.rows -= 1.0;
        self.counts[y] -= 1.0;
    }

    fn set_rest(&mut self, total: &Self, left: &Self) {
        self.rows = total.rows - left.rows;
        let counts = total.counts.iter().zip(&left.counts);
        for (rest, (total, left)) in self.counts.iter_mut().zip(counts) {
            *rest = total - left;
        }
    }

    fn impurity(&self) -> f64 {
        let squares = self
            .counts
            .iter()
            .fold(0.0, |sum, count| sum + count * count);
        1.0 - squares / (self.rows * self.rows)
    }

    fn proxy(left: &Self, right: &Self) -> f64 {
        -right.rows * right.impurity() - left.rows * left.impurity()
    }

    fn parts(_: &Self, left: &Self, right: &Self, _: &[Row<Self>]) -> (f64, f64) {
        (left.impurity(), right.impurity())
    }
}

/// A feature's value and the row's target.
type Row<S> = (f32, <S as Sums>::Target);

/// The rows left of a position in a node, moved from cut to cut.
struct Scan<'a, S: Sums> {
    rows: &'a [Row<S>],
    total: &'a S,
    left: S,
    right: S,
    at: usize,
}

impl<'a, S: Sums> Scan<'a, S> {
    fn new(rows: &'a [Row<S>], total: &'a S) -> Self {
        Self {
            rows,
            total,
            left: total.over(std::iter::empty()),
            right: total.clone(),
            at: 0,
        }
    }

    /// Moves forward to `to`, from wherever fewer rows must be passed: from here or back from the end.
    fn move_to(&mut self, to: usize) {
        if to - self.at <= self.rows.len() - to {
            for (_, y) in &self.rows[self.at..to] {
                self.left.add(*y);
            }
        } else {
            self.left.clone_from(self.total);
            for (_, y) in self.rows[to..].iter().rev() {
                self.left.remove(*y);
            }
        }
        self.right.set_rest(self.total, &self.left);
        self.at = to;
    }
}

/// A part of the rows, and its best cut and threshold where there is one.
struct Node<S> {
    start: usize,
    end: usize,
    cut: Option<(Cut<S>, f32)>,
}

struct Cut<S> {
    /// Rows of the left part.
    at: usize,
    improvement: f64,
    /// Sums and impurity of the two parts.
    left: (S, f64),
    right: (S, f64),
}

impl<S> Node<S> {
    /// A part that is not cut has none.
    fn improvement(&self) -> f64 {
        self.cut.as_ref().map_or(0.0, |(cut, _)| cut.improvement)
    }
}

impl<S> PartialEq for Node<S> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl<S> Eq for Node<S> {}
impl<S> PartialOrd for Node<S> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<S> Ord for Node<S> {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(self.improvement(), other.improvement())
    }
}

/// Thresholds of a tree on one column with at most `leaves` leaves, as f32. `root` holds the sums in the order of rows.
///
/// One sort is enough, unless there are `ties` and sums that depend on their order: scikit-learn sorts each node
/// again, and its sort moves equal values.
fn grow<S: Sums>(
    mut rows: Vec<Row<S>>,
    root: S,
    ties: bool,
    leaves: usize,
    options: TreeOptions,
) -> Vec<f32> {
    if !ties {
        rows.sort_by(|a, b| compare(a.0, b.0));
    }
    let mut thresholds = Vec::new();
    let (all, impurity) = (rows.len(), root.impurity());
    let mut node = |whole, start: usize, end: usize| {
        let part = &mut rows[start..end];
        let cut = best_cut(part, whole, all, ties, options);
        let threshold = cut
            .as_ref()
            .map(|cut| middle(part[cut.at - 1].0, part[cut.at].0));
        if let (Some(cut), true) = (&cut, ties) {
            part[cut.at..].rotate_left(1);
        }
        Node {
            start,
            end,
            cut: cut.zip(threshold),
        }
    };
    // Uncut parts stay in the heap: among equal improvements the heap's moves decide, which are those of
    // scikit-learn's (the C++ library's) heap.
    let mut frontier = BinaryHeap::from([node((root, impurity), 0, all)]);
    while let Some(Node { start, end, cut }) = frontier.pop() {
        let Some((cut, threshold)) = cut else {
            continue;
        };
        thresholds.push(threshold);
        if thresholds.len() + 1 == leaves {
            break;
        }
        let at = start + cut.at;
        frontier.push(node(cut.left, start, at));
        frontier.push(node(cut.right, at, end));
    }
    thresholds
}

/// Between two values, rounded once.
fn middle(a: f32, b: f32) -> f32 {
    (f64::from(a) / 2.0 + f64::from(b) / 2.0) as f32
}

/// The best cut of a node of a tree on `all` rows. `whole` holds the node's sums and impurity.
fn best_cut<S: Sums>(
    rows: &mut [Row<S>],
    whole: (S, f64),
    all: usize,
    ties: bool,
    options: TreeOptions,
) -> Option<Cut<S>> {
    let (total, impurity) = whole;
    let least = options.min_samples_leaf as usize;
    if rows.len() < 2 || rows.len() / 2 < least || impurity <= EPSILON {
        return None;
    }
    if ties {
        let depth = 2 * rows.len().ilog2();
        sort(rows, depth);
    }
    let rows = &*rows;
    let x = |at: usize| rows[at].0;
    let mut scan = Scan::new(rows, &total);
    let mut best = (f64::NEG_INFINITY, None);
    for at in least..=rows.len() - least {
        // Values that hardly differ cannot be cut apart; nor is there a cut behind the last one.
        if at == rows.len() || x(at) <= x(at - 1) + SAME {
            continue;
        }
        scan.move_to(at);
        let proxy = S::proxy(&scan.left, &scan.right);
        if proxy > best.0 {
            best = (proxy, Some(at));
        }
    }
    let at = best.1?;
    let mut scan = Scan::new(rows, &total);
    scan.move_to(at);
    let (left, right) = S::parts(&total, &scan.left, &scan.right, &rows[..at]);
    let n = total.rows();
    let improvement =
        (n / all as f64) * (impurity - scan.right.rows() / n * right - scan.left.rows() / n * left);
    if improvement + EPSILON < options.min_impurity_decrease {
        return None;
    }
    let sums = |rows: &mut dyn Iterator<Item = &Row<S>>| total.over(rows.map(|(_, y)| *y));
    Some(Cut {
        at,
        improvement,
        left: (sums(&mut rows[..at].iter()), left),
        // Cutting moves the first row of the right part behind its last.
        right: (
            sums(&mut rows[at + 1..].iter().chain(&rows[at..=at])),
            right,
        ),
    })
}

/// Sorts by value. What matters is where equal values end: as scikit-learn's introspective sort leaves them.
fn sort<T: Copy>(mut rows: &mut [(f32, T)], mut depth: u32) {
    while rows.len() > 15 {
        if depth == 0 {
            return heap_sort(rows);
        }
        depth -= 1;
        let n = rows.len();
        let mut three = [rows[0].0, rows[n / 2].0, rows[n - 1].0];
        three.sort_by(|a, b| compare(*a, *b));
        let pivot = three[1];
        let (mut at, mut low, mut high) = (0, 0, n); // [..low] is below the pivot, [high..] above it
        while at < high {
            match compare(rows[at].0, pivot) {
                Ordering::Less => {
                    rows.swap(at, low);
                    at += 1;
                    low += 1;
                }
                Ordering::Greater => {
                    high -= 1;
                    rows.swap(at, high);
                }
                Ordering::Equal => at += 1,
            }
        }
        let (left, right) = rows.split_at_mut(high);
        sort(&mut left[..low], depth);
        rows = right;
    }
    for at in 1..rows.len() {
        let place = rows[..at].partition_point(|row| row.0 <= rows[at].0);
        rows[place..=at].rotate_right(1);
    }
}

fn heap_sort<T: Copy>(rows: &mut [(f32, T)]) {
    for root in (0..rows.len() / 2).rev() {
        sift_down(rows, root);
    }
    for end in (1..rows.len()).rev() {
        rows.swap(0, end);
        sift_down(&mut rows[..end], 0);
    }
}

fn sift_down<T: Copy>(rows: &mut [(f32, T)], mut root: usize) {
    loop {
        let mut most = root;
        for child in [2 * root + 1, 2 * root + 2] {
            if child < rows.len() && rows[most].0 < rows[child].0 {
                most = child;
            }
        }
        if most == root {
            return;
        }
        rows.swap(root, most);
        root = most;
    }
}
