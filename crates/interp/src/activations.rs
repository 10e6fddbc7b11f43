//! Activations of a model over a corpus, shuffled: what dictionaries are trained on.
//!
//! The windows of the corpus are shuffled as a whole, by the seed. Each buffer takes the next windows through the model and shuffles the activations of all their
//! tokens. So a buffer is a function of the seed and its number: a training that goes on makes the one again in which it was stopped, and nothing of the
//! buffers before is needed. (Where buffers are refilled by halves, as in other stores, each depends on all before it.) Memory holds one buffer.
//!
//! With a folder each buffer is kept on the disk when it is made: other trainings over the same points, and later epochs, read it instead of asking the model.

use std::cell::{Cell, OnceCell};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use densely_core::weights::{self, Mapped, Tensors};
use densely_core::{Error, Result, check, fs};
use densely_lm::{Lm, Run};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::corpus::Corpus;
use crate::print::whole;

/// How activations are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActivationOptions {
    /// The hook points, by their names.
    pub points: Vec<String>,
    /// Tokens of a buffer, about; each takes four bytes for each value of each point.
    pub buffer: usize,
    /// Windows that go through the model at once.
    pub rows: usize,
    /// Seed of the order.
    pub seed: u64,
    /// Whether the token that begins each window counts, too. Its activations are like no others in most models.
    pub keep_first: bool,
}

impl ActivationOptions {
    /// Of these points: buffers of 65,536 tokens, 16 windows at once.
    pub fn new(points: &[impl AsRef<str>]) -> Self {
        let mut points: Vec<String> = points.iter().map(|p| p.as_ref().to_owned()).collect();
        points.sort();
        points.dedup();
        Self {
            points,
            buffer: 1 << 16,
            rows: 16,
            seed: 0,
            keep_first: false,
        }
    }
}

/// Which activations these are: what a folder of buffers, or a training, was begun with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contents {
    model: String,
    corpus: String,
    points: Vec<String>,
    buffer: usize,
    seed: u64,
    keep_first: bool,
}

/// Shuffled activations of a model over a corpus.
#[derive(Debug)]
pub struct Activations<'a> {
    model: &'a Lm,
    corpus: &'a Corpus,
    options: ActivationOptions,
    /// Windows in the order in which they are taken.
    order: Vec<usize>,
    /// Windows of a buffer.
    each: usize,
    /// The layer before which the model may stop.
    stop: usize,
    folder: Option<PathBuf>,
    harvested: Cell<(u64, Duration)>,
    /// Made when asked for: the prints read all of the model.
    contents: OnceCell<Contents>,
}

impl<'a> Activations<'a> {
    /// Activations of these points; with a folder they are kept there.
    ///
    /// # Errors
    /// [`Error::Config`] when a point is none of the model's, a size is 0, windows are longer than the model takes, or the folder holds activations of
    /// something else, naming what differs; [`Error::Io`].
    pub fn new(
        model: &'a Lm,
        corpus: &'a Corpus,
        options: ActivationOptions,
        folder: Option<&Path>,
    ) -> Result<Self> {
        check::positive("buffer", options.buffer as i64)?;
        check::positive("windows at once", options.rows as i64)?;
        check::positive("windows of the texts", corpus.windows() as i64)?;
        if options.points.is_empty() {
            return Err(Error::config("points", "are none"));
        }
        let limit = model.config().n_ctx as usize;
        if corpus.context() > limit {
            let reason = format!(
                "must be at most {limit}, what the model takes, got {}",
                corpus.context()
            );
            return Err(Error::config("context", reason));
        }
        let stop = options
            .points
            .iter()
            .map(|point| layer_of(model, point).map(|layer| layer + 1))
            .try_fold(0, |most, layer| Ok::<_, Error>(most.max(layer?)))?;
        let mut order: Vec<usize> = (0..corpus.windows()).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(options.seed));
        let counted = counted(corpus, options.keep_first);
        let this = Self {
            each: (options.buffer / counted).clamp(1, corpus.windows()),
            model,
            corpus,
            order,
            stop,
            folder: folder.map(Path::to_owned),
            harvested: Cell::default(),
            contents: OnceCell::new(),
            options,
        };
        if let Some(folder) = &this.folder {
            this.check_folder(folder)?;
        }
        Ok(this)
    }

    /// What they are a function of, with prints of model and texts in place of these.
    pub(crate) fn contents(&self) -> Result<Contents> {
        if let Some(contents) = self.contents.get() {
            return Ok(contents.clone());
        }
        let contents = Contents {
            model: format!("{:?}, {}", self.model.kind(), whole(self.model)?),
            corpus: self.corpus.print(),
            points: self.options.points.clone(),
            buffer: self.options.buffer,
            seed: self.options.seed,
            keep_first: self.options.keep_first,
        };
        Ok(self.contents.get_or_init(|| contents).clone())
    }

    fn check_folder(&self, folder: &Path) -> Result<()> {
        let contents = self.contents()?;
        let path = folder.join("activations.json");
        if !path.is_file() {
            std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
            let text = serde_json::json!(contents);
            return fs::write(&path, format!("{text:#}\n").as_bytes());
        }
        let text = std::fs::read(&path).map_err(Error::io(&path))?;
        let found: Contents = serde_json::from_slice(&text)
            .map_err(|error| Error::corrupt(&path, error.to_string()))?;
        let pairs = [
            ("model", &found.model, &contents.model),
            ("corpus", &found.corpus, &contents.corpus),
            (
                "points",
                &found.points.join(", "),
                &contents.points.join(", "),
            ),
            (
                "buffer, seed and first tokens",
                &format!("{} {} {}", found.buffer, found.seed, found.keep_first),
                &format!(
                    "{} {} {}",
                    contents.buffer, contents.seed, contents.keep_first
                ),
            ),
        ];
        match pairs.iter().find(|(_, found, wanted)| found != wanted) {
            None => Ok(()),
            Some((what, found, wanted)) => {
                let reason = format!(
                    "{} holds activations of another {what}: {found}, not {wanted}; take another folder",
                    folder.display()
                );
                Err(Error::config("store", reason))
            }
        }
    }

    /// Number of buffers.
    pub fn buffers(&self) -> usize {
        self.corpus.windows().div_ceil(self.each)
    }

    /// Tokens of a buffer.
    pub fn tokens(&self, buffer: usize) -> usize {
        self.windows(buffer).len() * counted(self.corpus, self.options.keep_first)
    }

    fn windows(&self, buffer: usize) -> &[usize] {
        let start = buffer.saturating_mul(self.each).min(self.order.len());
        let end = start.saturating_add(self.each).min(self.order.len());
        self.order.get(start..end).unwrap_or_default()
    }

    /// Tokens that went through the model so far, and the seconds it took.
    pub fn harvested(&self) -> (u64, f64) {
        let (tokens, time) = self.harvested.get();
        (tokens, time.as_secs_f64())
    }

    /// The activations of a buffer at some of the points, `[tokens, width]` each, the same order in all. `tell` hears how many windows of how many are done; its error ends
    /// the work.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a damaged file, which may be deleted; [`Error::Io`] when one cannot be written: those before it stay.
    pub fn buffer(
        &self,
        buffer: usize,
        points: &[&str],
        tell: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Tensors> {
        if let Some(point) = points
            .iter()
            .find(|point| !self.options.points.iter().any(|own| own == *point))
        {
            let reason = format!("`{point}` is none of those that are taken");
            return Err(Error::config("hook point", reason));
        }
        let Some(path) = self.file(buffer) else {
            return self.harvest(buffer, points, tell);
        };
        if path.is_file() {
            return self.read(&path, buffer, points);
        }
        let all: Vec<&str> = self.options.points.iter().map(String::as_str).collect();
        let mut made = self.harvest(buffer, &all, tell)?;
        weights::save(&path, &made, &[].into())?;
        made.retain(|name, _| points.contains(&name.as_str()));
        Ok(made)
    }

    /// Whether a buffer is on the disk.
    pub fn is_kept(&self, buffer: usize) -> bool {
        self.file(buffer).is_some_and(|path| path.is_file())
    }

    fn file(&self, buffer: usize) -> Option<PathBuf> {
        let name = format!("buffer-{buffer:05}.safetensors");
        self.folder.as_ref().map(|folder| folder.join(name))
    }

    fn read(&self, path: &Path, buffer: usize, points: &[&str]) -> Result<Tensors> {
        let file = Mapped::open(path)?;
        let tokens = self.tokens(buffer) as i64;
        let read = |point: &&str| {
            let fits = file.kind(point) == Some(Kind::Float)
                && matches!(file.size(point), Some([rows, _]) if *rows == tokens);
            if !fits {
                let reason = format!(
                    "it lacks `{point}` for {tokens} tokens; delete it, and it is made again"
                );
                return Err(Error::corrupt(path, reason));
            }
            Ok(((*point).to_owned(), file.tensor(point)?))
        };
        points.iter().map(read).collect()
    }

    fn harvest(
        &self,
        buffer: usize,
        points: &[&str],
        tell: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Tensors> {
        let _no_grad = tch::no_grad_guard();
        let windows = self.windows(buffer);
        let tokens = self.tokens(buffer) as i64;
        let skip =
            self.corpus.context() as i64 - counted(self.corpus, self.options.keep_first) as i64;
        // Where each token goes: rows are written there at once, so that no second copy of a buffer is made.
        let mut places: Vec<i64> = (0..tokens).collect();
        let seed = self.options.seed ^ (buffer as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        places.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        let places = Tensor::f_from_slice(&places)?;
        let mut made = Tensors::new();
        let (mut done, mut start) = (0, 0i64);
        for part in windows.chunks(self.options.rows) {
            let began = Instant::now();
            let ids = self.corpus.ids(part)?.f_to_device(self.model.device())?;
            let mut run = Run::new().stop_at(self.stop).cache(points);
            let _ = self.model.run(&ids, &mut run)?;
            let cache = run.take_cache();
            let count = part.len() as i64 * (self.corpus.context() as i64 - skip);
            let rows = places.f_narrow(0, start, count)?;
            for point in points {
                let xs = cache.get(point)?;
                let xs = xs.f_narrow(1, skip, xs.size()[1] - skip)?;
                let xs = xs.f_flatten(0, 1)?.f_flatten(1, -1)?; // [tokens, width]
                let xs = xs.f_to_kind(Kind::Float)?.f_to(tch::Device::Cpu)?;
                if !made.contains_key(*point) {
                    let size = [tokens, xs.size()[1]];
                    let empty = Tensor::f_empty(size, (Kind::Float, tch::Device::Cpu))?;
                    made.insert((*point).to_owned(), empty);
                }
                let all = made.get_mut(*point).ok_or_else(|| check::absent(point))?;
                let _ = all.f_index_copy_(0, &rows, &xs)?;
            }
            start += count;
            done += part.len();
            let (before, time) = self.harvested.get();
            self.harvested
                .set((before + count as u64, time + began.elapsed()));
            tell(done, windows.len())?;
        }
        Ok(made)
    }
}

/// Tokens of a window that count.
fn counted(corpus: &Corpus, keep_first: bool) -> usize {
    corpus.context() - if keep_first { 0 } else { corpus.skip() }
}

/// The layer of a point, such as 8 of `blocks.8.hook_mlp_out`.
///
/// # Errors
/// [`Error::Config`] when the model has no such point, or it is of no layer.
pub fn layer_of(model: &Lm, point: &str) -> Result<usize> {
    let known = model.hook_names().any(|name| name == point);
    let layer = point
        .strip_prefix("blocks.")
        .and_then(|rest| rest.split_once('.'))
        .and_then(|(layer, _)| layer.parse().ok());
    match layer {
        Some(layer) if known => Ok(layer),
        _ => {
            let near = densely_core::registry::nearest(model.hook_names(), point).join("`, `");
            let reason = format!("`{point}` is no point of a layer; nearest: `{near}`");
            Err(Error::config("hook point", reason))
        }
    }
}
