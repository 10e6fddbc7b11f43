//! The second moment C = E[k kᵀ] of what enters a layer's second MLP matrix, over ordinary text.
//!
//! It says which directions of keys ordinary text uses, so that an edit can keep out of them. It is not centred. Sums are made in
//! double precision, text window by text window in the order of the text, and kept on the disk with how far they came: a measurement that
//! was stopped goes on and ends in the same bits.
//!
//! The released code takes 100,000 articles, hours of work. Fewer tokens do: where there are less than ten for each of the m
//! hidden values, C is drawn towards a multiple of the identity, (1 - s) C + s (trace C / m) with s = m / (m + tokens), since it would else be
//! (nearly) singular.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use densely_core::weights::{self, Tensors};
use densely_core::{Error, Result, check};
use densely_lm::{Lm, Run, Tokenizer};
use tch::{Device, Kind, Tensor};

use super::double;
use crate::corpus::piece;
use crate::print::{Fnv, below};

/// A second moment of one layer, or the identity in its place.
#[derive(Debug)]
pub struct Moments {
    /// `[m, m]` on the CPU; `None` is the identity.
    matrix: Option<Tensor>,
    width: i64,
    count: u64,
    shrinkage: f64,
    factor: OnceCell<Factor>,
}

/// What solves systems of a matrix quickly.
#[derive(Debug)]
enum Factor {
    /// The lower triangle of Cholesky.
    Triangle(Tensor),
    /// The matrix itself where it has no such triangle.
    Whole(Tensor),
}

/// Tokens for each hidden value below which a moment is drawn towards the identity.
const ENOUGH: u64 = 10;

impl Moments {
    /// The identity in the place of moments: the change is then along the key itself.
    ///
    /// # Errors
    /// [`Error::Config`] when `width` is below 1.
    pub fn identity(width: i64) -> Result<Self> {
        check::positive("width of the moments", width)?;
        Ok(Self {
            matrix: None,
            width,
            count: 0,
            shrinkage: 0.0,
            factor: OnceCell::new(),
        })
    }

    /// A moment `[m, m]` of so many tokens, taken as it is.
    ///
    /// # Errors
    /// [`Error::Shape`] when it is no square matrix of floating-point numbers; [`Error::Data`] when a value is not finite.
    pub fn from_tensor(matrix: &Tensor, count: u64) -> Result<Self> {
        check::floating("moments", matrix)?;
        let width = matrix.size().first().copied().unwrap_or(0);
        check::shape("moments", matrix, &[Some(width), Some(width)])?;
        check::positive("width of the moments", width)?;
        if matrix.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            return Err(Error::data(
                "",
                "the moments hold a value that is not finite",
            ));
        }
        Ok(Self {
            matrix: Some(matrix.f_detach()?.f_to(Device::Cpu)?),
            width,
            count,
            shrinkage: 0.0,
            factor: OnceCell::new(),
        })
    }

    /// The same moment, drawn towards a multiple of the identity by a share.
    ///
    /// # Errors
    /// [`Error::Config`] when the share is not within 0 and 1.
    pub fn with_shrinkage(mut self, share: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&share) {
            let reason = format!("must lie in 0 to 1, got {share}");
            return Err(Error::config("shrinkage", reason));
        }
        self.shrinkage = share;
        self.factor = OnceCell::new();
        Ok(self)
    }

    /// The share that [`measure`] and [`read`](Self::read) use: 0 from ten tokens for each of `width` on.
    pub fn usual_shrinkage(width: i64, count: u64) -> f64 {
        let width = width.max(0) as u64;
        if count >= ENOUGH * width {
            return 0.0;
        }
        width as f64 / (width + count) as f64
    }

    /// The matrix `[m, m]` as measured; `None` is the identity.
    pub const fn matrix(&self) -> Option<&Tensor> {
        self.matrix.as_ref()
    }

    /// Number of tokens.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// m.
    pub const fn width(&self) -> i64 {
        self.width
    }

    /// By which share it is drawn towards a multiple of the identity.
    pub const fn shrinkage(&self) -> f64 {
        self.shrinkage
    }

    /// What it is, in a line.
    pub fn described(&self) -> String {
        if self.matrix.is_none() {
            return "the identity in the place of second moments".to_owned();
        }
        let drawn = if self.shrinkage > 0.0 {
            format!(
                ", drawn towards the identity by {:.3} because that is less than {ENOUGH} tokens for each of {} hidden values",
                self.shrinkage, self.width
            )
        } else {
            String::new()
        };
        format!("second moments over {} tokens{drawn}", self.count)
    }

    /// The matrix that is solved with, `[m, m]`, of kind double on the CPU.
    ///
    /// # Errors
    /// [`Error::Torch`] when there is no memory for it.
    pub fn conditioned(&self) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let options = (Kind::Double, Device::Cpu);
        let Some(matrix) = &self.matrix else {
            return Ok(Tensor::f_eye(self.width, options)?);
        };
        let matrix = matrix.f_totype(Kind::Double)?;
        if self.shrinkage == 0.0 {
            return Ok(matrix);
        }
        let mean = matrix.f_trace()?.f_double_value(&[])? / self.width as f64;
        let one = Tensor::f_eye(self.width, options)?.f_mul_scalar(self.shrinkage * mean)?;
        Ok(matrix.f_mul_scalar(1.0 - self.shrinkage)?.f_add(&one)?)
    }

    /// C⁻¹ times columns `[m, n]`, of kind double on the CPU. The first call factors the matrix, later ones reuse that.
    ///
    /// # Errors
    /// [`Error::Shape`] when the columns have another height; [`Error::Torch`] when the matrix is singular.
    pub fn solve(&self, columns: &Tensor) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        check::shape("keys", columns, &[Some(self.width), None])?;
        let columns = double(columns)?;
        if self.matrix.is_none() {
            return Ok(columns);
        }
        match self.factor()? {
            Factor::Triangle(lower) => Ok(columns.f_cholesky_solve(lower, false)?),
            Factor::Whole(matrix) => Ok(Tensor::f_linalg_solve(matrix, &columns, true)?),
        }
    }

    fn factor(&self) -> Result<&Factor> {
        if self.factor.get().is_none() {
            let matrix = self.conditioned()?;
            let (lower, info) = matrix.f_linalg_cholesky_ex(false, false)?;
            let made = if info.f_int64_value(&[])? == 0 {
                Factor::Triangle(lower)
            } else {
                tracing::warn!(
                    "the second moments are not positive definite; more tokens, or drawing them towards the identity, would help"
                );
                Factor::Whole(matrix)
            };
            // Nobody else can have set it.
            let _ = self.factor.set(made);
        }
        self.factor
            .get()
            .ok_or_else(|| Error::data("", "the second moments could not be factored"))
    }

    /// Writes `mom2`, the mean of k kᵀ, and the number of tokens as safetensors.
    ///
    /// # Errors
    /// [`Error::Config`] for the identity, which needs no file; [`Error::Io`].
    pub fn save(&self, path: &Path, made_of: &MadeOf) -> Result<()> {
        let Some(matrix) = &self.matrix else {
            let reason = "are the identity, which needs no file";
            return Err(Error::config("moments", reason));
        };
        let tensors = Tensors::from([("mom2".to_owned(), matrix.shallow_clone())]);
        let mut metadata = made_of.metadata();
        metadata.insert("kind".to_owned(), KIND.to_owned());
        metadata.insert("count".to_owned(), self.count.to_string());
        weights::save(path, &tensors, &metadata)
    }

    /// Reads a file of [`save`](Self::save), with what it was made of.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Corrupt`] when it is no such file.
    pub fn read(path: &Path) -> Result<(Self, MadeOf)> {
        let file = weights::read(path)?;
        if file.metadata.get("kind").map(String::as_str) != Some(KIND) {
            return Err(Error::corrupt(path, "it holds no second moments"));
        }
        let made_of = MadeOf::from_metadata(path, &file.metadata)?;
        let count = number(path, &file.metadata, "count")?;
        let matrix = file
            .tensors
            .get("mom2")
            .ok_or_else(|| Error::corrupt(path, "it lacks `mom2`"))?;
        let found = Self::from_tensor(matrix, count)
            .map_err(|error| Error::corrupt(path, error.to_string()))?;
        let share = Self::usual_shrinkage(found.width, count);
        Ok((found.with_shrinkage(share)?, made_of))
    }

    /// Reads the moments of a layer of a model: from a file, or from the file of that layer in a folder of [`measure`].
    ///
    /// # Errors
    /// Those of [`read`](Self::read); [`Error::Config`] when they were measured on another layer or model.
    pub fn of_layer(path: &Path, model: &Lm, layer: usize) -> Result<Self> {
        let file = if path.is_dir() {
            file_of(path, layer)
        } else {
            path.to_owned()
        };
        let (moments, made_of) = Self::read(&file)?;
        let model = below(model, layer)?;
        if made_of.layer != layer || made_of.model != model {
            let reason = format!(
                "{} were measured on layer {} of {}; this is layer {layer} of {model}",
                file.display(),
                made_of.layer,
                made_of.model
            );
            return Err(Error::config("moments", reason));
        }
        Ok(moments)
    }
}

const KIND: &str = "densely-moments";
const PARTIAL: &str = "densely-moments-partial";

/// What moments were measured on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeOf {
    /// The layer.
    pub layer: usize,
    /// The model, by its sizes, the kind of its numbers and all weights that its keys are made by.
    pub model: String,
    /// The text, by its tokens.
    pub text: String,
}

impl MadeOf {
    /// Of a layer of a model and a text.
    ///
    /// # Errors
    /// [`Error::Config`] when the model lacks the layer.
    pub fn new(model: &Lm, layer: usize, windows: &Windows) -> Result<Self> {
        Ok(Self {
            layer,
            model: below(model, layer)?,
            text: windows.print(),
        })
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("layer".to_owned(), self.layer.to_string()),
            ("model".to_owned(), self.model.clone()),
            ("text".to_owned(), self.text.clone()),
        ])
    }

    fn from_metadata(path: &Path, metadata: &BTreeMap<String, String>) -> Result<Self> {
        let text = |key: &str| {
            let value = metadata.get(key).cloned();
            value.ok_or_else(|| Error::corrupt(path, format!("it does not say its `{key}`")))
        };
        Ok(Self {
            layer: number(path, metadata, "layer")? as usize,
            model: text("model")?,
            text: text("text")?,
        })
    }
}

fn number(path: &Path, metadata: &BTreeMap<String, String>, key: &str) -> Result<u64> {
    let value = metadata.get(key).and_then(|text| text.parse().ok());
    value.ok_or_else(|| Error::corrupt(path, format!("it does not say its `{key}`")))
}

/// Text cut into rows of tokens that go through a model alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// Token ids.
    pub rows: Vec<Vec<i64>>,
    /// Tokens at the start of each row that belong to no text and are not counted.
    pub skip: usize,
}

impl Windows {
    /// Cuts the first `tokens` tokens of a text into rows of `length`, the last one shorter.
    ///
    /// Where the tokenizer begins texts with a token of its own, so does each row.
    ///
    /// # Errors
    /// [`Error::Config`] when a number is 0 or the text is empty; what the tokenizer says.
    pub fn new(tokenizer: &Tokenizer, text: &str, tokens: usize, length: usize) -> Result<Self> {
        check::positive("tokens", tokens as i64)?;
        let start: Vec<i64> = match tokenizer.bos() {
            Some(bos) if tokenizer.encode("a")?.first() == Some(&bos) => vec![bos],
            _ => Vec::new(),
        };
        let skip = start.len();
        check::positive("length of a window", length as i64 - skip as i64)?;
        let mut ids: Vec<i64> = Vec::new();
        // In pieces of whole lines: much more text than is wanted is not read.
        let mut rest = text;
        while !rest.is_empty() && ids.len() < tokens {
            let piece = piece(rest);
            ids.extend(tokenizer.encode_plain(piece)?);
            rest = rest.get(piece.len()..).unwrap_or_default();
        }
        if ids.is_empty() {
            return Err(Error::config("text", "has no token"));
        }
        if ids.len() < tokens {
            tracing::warn!(
                "the text has {} tokens, fewer than the {tokens} asked for",
                ids.len()
            );
        }
        ids.truncate(tokens);
        let rows = ids
            .chunks(length - skip)
            .map(|chunk| [start.as_slice(), chunk].concat())
            .collect();
        Ok(Self { rows, skip })
    }

    /// Tokens that are counted.
    pub fn count(&self) -> u64 {
        let counted = |row: &Vec<i64>| row.len().saturating_sub(self.skip) as u64;
        self.rows.iter().map(counted).sum()
    }

    /// The text by 64 bits of its tokens (FNV-1a).
    fn print(&self) -> String {
        let mut hash = Fnv::new();
        let mut add = |value: i64| hash.add(&value.to_le_bytes());
        add(self.skip as i64);
        for row in &self.rows {
            add(row.len() as i64);
            for id in row {
                add(*id);
            }
        }
        format!("{} tokens, {hash}", self.count())
    }
}

/// The file of a layer in a folder of moments.
pub fn file_of(folder: &Path, layer: usize) -> PathBuf {
    folder.join(format!("moments-{layer}.safetensors"))
}

fn partial_of(folder: &Path, layer: usize) -> PathBuf {
    folder.join(format!("moments-{layer}.partial.safetensors"))
}

/// A sum that is being made.
#[derive(Debug)]
struct Sum {
    layer: usize,
    made_of: MadeOf,
    /// `[m, m]` of kind double on the model's device.
    total: Tensor,
    /// Windows that are in it.
    windows: usize,
    count: u64,
}

impl Sum {
    /// Goes on with what is on the disk, or begins.
    fn open(model: &Lm, layer: usize, made_of: MadeOf, folder: Option<&Path>) -> Result<Self> {
        let m = model.config().d_mlp;
        if let Some(path) = folder.map(|folder| partial_of(folder, layer))
            && path.is_file()
        {
            let file = weights::read(&path)?;
            if file.metadata.get("kind").map(String::as_str) != Some(PARTIAL) {
                return Err(Error::corrupt(&path, "it holds no part of second moments"));
            }
            same(
                &path,
                &MadeOf::from_metadata(&path, &file.metadata)?,
                &made_of,
            )?;
            let sum = file
                .tensors
                .get("sum")
                .ok_or_else(|| Error::corrupt(&path, "it lacks `sum`"))?;
            check::shape("sum", sum, &[Some(m), Some(m)])
                .and_then(|()| check::kind("sum", sum, Kind::Double))
                .map_err(|error| Error::corrupt(&path, error.to_string()))?;
            return Ok(Self {
                layer,
                made_of,
                total: sum.f_to(model.device())?,
                windows: number(&path, &file.metadata, "windows")? as usize,
                count: number(&path, &file.metadata, "count")?,
            });
        }
        Ok(Self {
            layer,
            made_of,
            total: Tensor::f_zeros([m, m], (Kind::Double, model.device()))?,
            windows: 0,
            count: 0,
        })
    }

    fn save(&self, folder: &Path) -> Result<()> {
        let tensors = Tensors::from([("sum".to_owned(), self.total.shallow_clone())]);
        let mut metadata = self.made_of.metadata();
        metadata.insert("kind".to_owned(), PARTIAL.to_owned());
        metadata.insert("windows".to_owned(), self.windows.to_string());
        metadata.insert("count".to_owned(), self.count.to_string());
        weights::save(&partial_of(folder, self.layer), &tensors, &metadata)
    }

    fn finish(&self, kind: Kind) -> Result<Moments> {
        if self.count == 0 {
            return Err(Error::config("text", "has no token"));
        }
        let mean = self
            .total
            .f_div_scalar(self.count as f64)?
            .f_totype(super::wide(kind))?;
        let moments = Moments::from_tensor(&mean, self.count)?;
        let share = Moments::usual_shrinkage(moments.width, self.count);
        moments.with_shrinkage(share)
    }
}

fn same(path: &Path, found: &MadeOf, wanted: &MadeOf) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    let reason = format!(
        "{} was measured on layer {} of {} over {}; this is layer {} of {} over {}: take another folder",
        path.display(),
        found.layer,
        found.model,
        found.text,
        wanted.layer,
        wanted.model,
        wanted.text
    );
    Err(Error::config("moments", reason))
}

/// Measures the moments of some layers over a text, in one pass over it.
///
/// With a folder they are kept there, a file for each layer; what is there already is read, and what was begun goes on. Every `every` windows what
/// was summed so far is saved. `watch` is told of windows done, and of all.
///
/// # Errors
/// [`Error::Config`] when a layer is none of the model's, the text does not fit it, or the folder holds moments of another model or text;
/// [`Error::Interrupted`] when somebody asked to stop, with all that was done saved; [`Error::Io`].
pub fn measure(
    model: &Lm,
    windows: &Windows,
    layers: &[usize],
    folder: Option<&Path>,
    every: usize,
    watch: &mut dyn FnMut(usize, usize),
) -> Result<BTreeMap<usize, Moments>> {
    let _guard = tch::no_grad_guard();
    check::positive("windows between two saves", every as i64)?;
    let mut found = BTreeMap::new();
    let mut sums: Vec<Sum> = Vec::new();
    for layer in layers {
        if found.contains_key(layer) || sums.iter().any(|sum| sum.layer == *layer) {
            continue;
        }
        let made_of = MadeOf::new(model, *layer, windows)?;
        match folder.map(|folder| file_of(folder, *layer)) {
            Some(path) if path.is_file() => {
                let (moments, own) = Moments::read(&path)?;
                same(&path, &own, &made_of)?;
                found.insert(*layer, moments);
            }
            _ => sums.push(Sum::open(model, *layer, made_of, folder)?),
        }
    }
    if sums.is_empty() {
        return Ok(found);
    }
    let deepest = sums.iter().map(|sum| sum.layer).max().unwrap_or(0);
    let points: Vec<String> = sums
        .iter()
        .map(|sum| format!("blocks.{}.mlp.hook_post", sum.layer))
        .collect();
    let first = sums.iter().map(|sum| sum.windows).min().unwrap_or(0);
    let all = windows.rows.len();
    for (place, row) in windows.rows.iter().enumerate().skip(first) {
        let ids = Tensor::f_from_slice(row)?
            .f_unsqueeze(0)?
            .f_to(model.device())?;
        let mut run = Run::new().stop_at(deepest + 1).cache(&points);
        let _ = model.run(&ids, &mut run)?;
        let cache = run.take_cache();
        let counted = row.len().saturating_sub(windows.skip) as i64;
        for (sum, point) in sums.iter_mut().zip(&points) {
            // Of layers that were saved at different times, one may be ahead.
            if sum.windows > place || counted == 0 {
                continue;
            }
            let keys = cache
                .get(point)?
                .f_select(0, 0)?
                .f_narrow(0, windows.skip as i64, counted)?
                .f_totype(super::wide(model.kind()))?; // [tokens, m]
            let product = keys.f_tr()?.f_matmul(&keys)?;
            let _ = sum.total.f_add_(&product.f_totype(Kind::Double)?)?;
            sum.windows = place + 1;
            sum.count += counted as u64;
        }
        watch(place + 1, all);
        let stop = densely_train::signal::interrupted();
        if let Some(folder) = folder {
            if stop || ((place + 1) % every == 0 && place + 1 < all) {
                for sum in sums.iter().filter(|sum| sum.windows == place + 1) {
                    sum.save(folder)?;
                }
            }
            if stop {
                let folder = folder.to_owned();
                return Err(Error::Interrupted { folder });
            }
        } else if stop {
            let reason = "was interrupted; nothing is kept without a folder for it";
            return Err(Error::config("measuring moments", reason));
        }
    }
    for sum in &sums {
        let moments = sum.finish(model.kind())?;
        if let Some(folder) = folder {
            moments.save(&file_of(folder, sum.layer), &sum.made_of)?;
            let part = partial_of(folder, sum.layer);
            if part.is_file() {
                std::fs::remove_file(&part).map_err(Error::io(&part))?;
            }
        }
        found.insert(sum.layer, moments);
    }
    Ok(found)
}
