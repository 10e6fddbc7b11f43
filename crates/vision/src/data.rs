//! Data sets of pictures, their parts, and batches of them from worker threads.

mod classes;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use classes::classes;
pub(crate) use classes::same_classes;
use densely_core::{Error, Result, check};
use densely_data::dataset::{Order, permutations};
use densely_data::image::AnyImage;
#[cfg(feature = "parquet")]
use densely_data::image::sources::ParquetPictures;
use densely_data::image::sources::{
    CifarBinary, CifarKind, Folder, FolderOptions, Idx, InMemory, Pictures,
};
use densely_torch_ext::threads;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Where pictures and their classes are; paths are relative to the data set's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Source {
    /// A folder per class with pictures of any format.
    Folder {
        /// The folder of folders.
        path: String,
    },
    /// A column of encoded pictures and one of class numbers.
    #[cfg(feature = "parquet")]
    Parquet {
        /// The file.
        path: String,
        /// Column with the pictures: bytes, or a struct with a field `bytes`.
        #[serde(default = "image_column")]
        image: String,
        /// Column with the class numbers.
        #[serde(default = "label_column")]
        label: String,
    },
    /// The files of MNIST and its relatives.
    Idx {
        /// Pictures, `…-idx3-ubyte`, also `.gz`.
        images: String,
        /// Class numbers, `…-idx1-ubyte`, also `.gz`.
        labels: String,
    },
    /// Binary files of CIFAR-10.
    Cifar10 {
        /// `data_batch_1.bin` and so on.
        files: Vec<String>,
    },
    /// A binary file of CIFAR-100.
    Cifar100 {
        /// `train.bin` or `test.bin`.
        files: Vec<String>,
        /// The 20 superclasses instead of the 100 classes.
        #[serde(default)]
        coarse: bool,
    },
}

#[cfg(feature = "parquet")]
fn image_column() -> String {
    "image".to_owned()
}

#[cfg(feature = "parquet")]
fn label_column() -> String {
    "label".to_owned()
}

impl Source {
    /// Opens the files in `folder`. With `classes`, such as those that a network was trained on, class folders take their numbers from them, and may be absent.
    ///
    /// # Errors
    /// Those of the format's own `open`; [`Error::Data`] for a class folder of another name.
    pub fn open(&self, folder: &Path, classes: &[String]) -> Result<Arc<dyn Pictures>> {
        let all = |files: &[String]| {
            files
                .iter()
                .map(|file| folder.join(file))
                .collect::<Vec<_>>()
        };
        Ok(match self {
            Self::Folder { path } => {
                let options = FolderOptions {
                    classes: classes.to_vec(),
                    allow_empty: !classes.is_empty(),
                    ..FolderOptions::default()
                };
                Arc::new(Folder::open_with(&folder.join(path), &options)?)
            }
            #[cfg(feature = "parquet")]
            Self::Parquet { path, image, label } => {
                let path = folder.join(path);
                Arc::new(ParquetPictures::open(&path, image, Some(label))?)
            }
            Self::Idx { images, labels } => {
                Arc::new(Idx::open(&folder.join(images), &folder.join(labels))?)
            }
            Self::Cifar10 { files } => {
                Arc::new(CifarBinary::open(&all(files), CifarKind::Cifar10)?)
            }
            Self::Cifar100 { files, coarse } => {
                let kind = CifarKind::Cifar100 { fine: !coarse };
                Arc::new(CifarBinary::open(&all(files), kind)?)
            }
        })
    }
}

/// Pictures of a data set that belong to one part, by their numbers.
#[derive(Clone)]
pub struct Part {
    pictures: Arc<dyn Pictures>,
    numbers: Vec<usize>,
    /// By number, of pictures that were decoded and kept.
    names: Option<Arc<Vec<String>>>,
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Part")
            .field("pictures", &self.numbers.len())
            .finish_non_exhaustive()
    }
}

/// A picture that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bad {
    /// Its name in the data set.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Bytes of decoded pictures up to which the parts of a data set are kept in memory.
pub(crate) const KEPT: usize = 2 << 30;

impl Part {
    /// All pictures of a data set.
    pub fn all(pictures: Arc<dyn Pictures>) -> Self {
        let numbers = (0..pictures.len()).collect();
        Self {
            pictures,
            numbers,
            names: None,
        }
    }

    /// Pictures.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// The picture at `place` of this part.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and [`Error::Io`] of its file.
    pub fn picture(&self, place: usize) -> Result<AnyImage> {
        self.pictures.picture(self.numbers[place])
    }

    /// Its class.
    ///
    /// # Errors
    /// [`Error::Data`] for a picture without one.
    pub fn label(&self, place: usize) -> Result<i64> {
        let number = self.numbers[place];
        let label = self.pictures.label(number).map(|label| label as i64);
        label.ok_or_else(|| Error::data("", format!("{} has no class", self.named(number))))
    }

    /// Its name.
    pub fn name(&self, place: usize) -> String {
        self.named(self.numbers[place])
    }

    fn named(&self, number: usize) -> String {
        let known = self.names.as_ref().and_then(|names| names.get(number));
        known.cloned().unwrap_or_else(|| self.pictures.name(number))
    }

    /// The pictures at these places.
    #[must_use]
    pub fn chosen(&self, places: &[i64]) -> Self {
        self.with(
            places
                .iter()
                .map(|place| self.numbers[*place as usize])
                .collect(),
        )
    }

    fn with(&self, numbers: Vec<usize>) -> Self {
        Self {
            numbers,
            ..self.clone()
        }
    }

    /// Names of the classes.
    pub fn classes(&self) -> &[String] {
        self.pictures.classes()
    }

    /// A share of the pictures of each class, drawn by `seed`, and the rest.
    ///
    /// # Errors
    /// [`Error::Config`] when one of them has none; [`Error::Data`] for a picture without a class.
    pub fn divide(&self, share: f64, seed: u64) -> Result<[Self; 2]> {
        let order = permutations(self.len(), Order::Shared, seed, 0);
        let mut by_class: Vec<Vec<usize>> = Vec::new();
        for place in order {
            let class = self.label(place as usize)? as usize;
            if by_class.len() <= class {
                by_class.resize(class + 1, Vec::new());
            }
            by_class[class].push(self.numbers[place as usize]);
        }
        let (mut some, mut rest) = (Vec::new(), Vec::new());
        for numbers in by_class {
            let count = (numbers.len() as f64 * share).round() as usize;
            let count = count.min(numbers.len());
            some.extend_from_slice(&numbers[..count]);
            rest.extend_from_slice(&numbers[count..]);
        }
        if some.is_empty() || rest.is_empty() {
            return Err(self.too_few(share));
        }
        Ok([some, rest].map(|mut numbers| {
            numbers.sort_unstable();
            self.with(numbers)
        }))
    }

    /// A share of the pictures, evenly spread over a random order drawn by `seed`, and the rest.
    ///
    /// # Errors
    /// [`Error::Config`] when one of them has none.
    pub fn split(&self, share: f64, seed: u64) -> Result<[Self; 2]> {
        let mut order = permutations(self.len(), Order::Shared, seed, 0);
        let count = (self.len() as f64 * share).round() as usize;
        if count == 0 || count >= self.len() {
            return Err(self.too_few(share));
        }
        let mut rest = order.split_off(count);
        order.sort_unstable();
        rest.sort_unstable();
        Ok([self.chosen(&order), self.chosen(&rest)])
    }

    fn too_few(&self, share: f64) -> Error {
        let reason = format!(
            "{share} of {} pictures leaves none for validation or none to train on",
            self.len()
        );
        Error::config("valid_share", reason)
    }

    /// At most `count` pictures, evenly spread.
    #[must_use]
    pub fn thinned(self, count: usize) -> Self {
        let all = self.numbers.len();
        if count == 0 || count >= all {
            return self;
        }
        self.with(
            (0..count)
                .map(|place| self.numbers[place * all / count])
                .collect(),
        )
    }

    /// The same pictures decoded and kept in memory, where `budget` bytes are enough, which become less by them; those that cannot be read are left out and
    /// returned. Else the part as it is.
    ///
    /// # Errors
    /// [`Error::Data`] when no picture can be read, and the first bad picture's own error when `strict`.
    pub fn kept(self, budget: &mut usize, strict: bool) -> Result<(Self, Vec<Bad>)> {
        let Some(first) = (0..self.len().min(16)).find_map(|place| self.picture(place).ok()) else {
            if self.is_empty() {
                return Err(Error::data("", "there is no picture"));
            }
            return self.picture(0).map(|_| (self, Vec::new()));
        };
        let bytes = first.width() * first.height() * first.channels();
        if bytes.saturating_mul(self.len()) > *budget {
            return Ok((self, Vec::new()));
        }
        let (mut images, mut labels, mut names) = (Vec::new(), Vec::new(), Vec::new());
        let (mut bad, mut left) = (Vec::new(), *budget);
        let decoded = densely_data::image::decode_ordered(
            Arc::clone(&self.pictures),
            &self.numbers,
            workers(),
            |_, picture| Ok(picture.into_eight()),
        );
        for (number, image) in decoded {
            match image {
                Ok(image) => {
                    let Some(rest) = left.checked_sub(image.pixels().len()) else {
                        return Ok((self, Vec::new()));
                    };
                    left = rest;
                    images.push(image);
                    names.push(self.named(number));
                    // A data set without classes has none for any picture.
                    labels.extend(self.pictures.label(number));
                }
                Err(error) if strict => return Err(error),
                Err(error) => bad.push(Bad {
                    name: self.named(number),
                    reason: error.to_string(),
                }),
            }
        }
        if images.is_empty() {
            return Err(Error::data("", "no picture can be read"));
        }
        *budget = left;
        let kept = InMemory::new(images, &labels, self.classes().to_vec())?;
        let kept = Self {
            names: Some(Arc::new(names)),
            ..Self::all(Arc::new(kept))
        };
        Ok((kept, bad))
    }
}

/// Threads beside the one that trains.
pub fn workers() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    (cores / 2).clamp(1, 8)
}

/// Pictures ready for a model.
#[derive(Debug)]
pub struct Batch {
    /// `[batch, channels, height, width]`, f32.
    pub image: Tensor,
    /// `[batch]`, i64.
    pub label: Tensor,
    /// Of each picture in its part.
    pub places: Vec<i64>,
}

/// What is made of a picture: its place in the part, and its pixels.
pub type Prepare = dyn Fn(usize, &AnyImage) -> Result<Tensor> + Send + Sync;

/// Batches that worker threads make ahead, in order. After an error it ends.
pub struct Batches<B> {
    /// Batch `n` comes from worker `n % len`.
    queues: Vec<Receiver<Result<B>>>,
    threads: Vec<JoinHandle<()>>,
    next: usize,
    count: usize,
}

impl<B> std::fmt::Debug for Batches<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Batches")
            .field("next", &self.next)
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

/// Batches that each worker makes ahead.
const AHEAD: usize = 2;

impl<B: Send + 'static> Batches<B> {
    /// What `make` makes of each of `plan`: places of the pictures of a batch.
    pub fn new(
        plan: Vec<Vec<i64>>,
        make: impl Fn(&[i64]) -> Result<B> + Send + Sync + 'static,
    ) -> Self {
        let (plan, make) = (Arc::new(plan), Arc::new(make));
        let count = plan.len();
        let workers = workers().min(count.max(1));
        let (mut queues, mut threads) = (Vec::new(), Vec::new());
        for worker in 0..workers {
            let (sender, receiver) = sync_channel(AHEAD);
            let (plan, make) = (Arc::clone(&plan), Arc::clone(&make));
            queues.push(receiver);
            threads.push(std::thread::spawn(move || {
                // libtorch would ask for all cores in each worker.
                threads::compute_alone();
                for places in plan.iter().skip(worker).step_by(workers) {
                    let made = make(places);
                    let failed = made.is_err();
                    // Nobody takes it when the epoch was left early.
                    if sender.send(made).is_err() || failed {
                        return;
                    }
                }
            }));
        }
        Self {
            queues,
            threads,
            next: 0,
            count,
        }
    }
}

impl Batches<Option<Batch>> {
    /// Pictures of `part` as `prepare` makes them, with their classes. One that cannot be read is left out, with a warning, unless `strict`;
    /// a batch of such ones alone is `None`.
    pub fn to_see(part: &Part, plan: Vec<Vec<i64>>, prepare: &Arc<Prepare>, strict: bool) -> Self {
        let (part, prepare) = (part.clone(), Arc::clone(prepare));
        Self::new(plan, move |places| batch(&part, places, &*prepare, strict))
    }
}

impl Batches<Batch> {
    /// Like [`to_see`](Batches::to_see), but where no picture of a batch can be read, the next one of the part that can stands in: a step
    /// that is left out would make a resumed run another one.
    pub fn to_train(
        part: &Part,
        plan: Vec<Vec<i64>>,
        prepare: &Arc<Prepare>,
        strict: bool,
    ) -> Self {
        let (part, prepare) = (part.clone(), Arc::clone(prepare));
        Self::new(plan, move |places| {
            let last = places.last().copied().unwrap_or_default();
            let others = (1..part.len() as i64).map(|far| vec![(last + far) % part.len() as i64]);
            for places in std::iter::once(places.to_vec()).chain(others) {
                if let Some(batch) = batch(&part, &places, &*prepare, strict)? {
                    return Ok(batch);
                }
            }
            Err(Error::data("", "no picture to train on can be read"))
        })
    }
}

fn batch(part: &Part, places: &[i64], prepare: &Prepare, strict: bool) -> Result<Option<Batch>> {
    let (mut images, mut labels, mut read) = (Vec::new(), Vec::new(), Vec::new());
    for number in places {
        let place = *number as usize;
        let picture = part
            .picture(place)
            .and_then(|picture| prepare(place, &picture));
        match picture {
            Ok(image) => {
                images.push(image);
                labels.push(part.label(place)?);
                read.push(*number);
            }
            Err(error) if strict => return Err(error),
            Err(error) => tracing::warn!("left out: {}: {error}", part.name(place)),
        }
    }
    if images.is_empty() {
        return Ok(None);
    }
    Ok(Some(Batch {
        image: Tensor::f_stack(&images, 0)?,
        label: Tensor::from_slice(&labels),
        places: read,
    }))
}

impl<B> Iterator for Batches<B> {
    type Item = Result<B>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next == self.count {
            return None;
        }
        let from = self.next % self.queues.len();
        self.next += 1;
        let made = self.queues[from].recv().unwrap_or_else(|_| {
            let reason = "a thread that makes batches has ended too early";
            Err(Error::data("", reason))
        });
        if made.is_err() {
            self.next = self.count;
        }
        Some(made)
    }
}

impl<B> Drop for Batches<B> {
    fn drop(&mut self) {
        self.queues.clear();
        for thread in self.threads.drain(..) {
            // A panic was told of by the batch that did not come.
            let _ = thread.join();
        }
    }
}

/// Places of all pictures in order, in batches.
pub fn in_order(count: usize, batch_size: i64) -> Vec<Vec<i64>> {
    let places: Vec<i64> = (0..count as i64).collect();
    places
        .chunks(batch_size.max(1) as usize)
        .map(<[i64]>::to_vec)
        .collect()
}

/// Places in the order of an epoch, in batches, without the first `skip`.
pub fn shuffled(count: usize, batch_size: i64, seed: u64, epoch: u64, skip: u64) -> Vec<Vec<i64>> {
    let order = permutations(count, Order::Shared, seed, epoch);
    let batches = order.chunks(batch_size.max(1) as usize);
    batches.skip(skip as usize).map(<[i64]>::to_vec).collect()
}

/// The parts of a data set, and how pictures are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// Pictures to train on.
    pub train: Source,
    /// Pictures that choose the epoch; a share of the former when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<Source>,
    /// That share.
    #[serde(default = "tenth")]
    pub valid_share: f64,
    /// Pictures that are judged at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<Source>,
    /// Names of the classes where the files hold numbers only; refused where they have names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// 3 for colours, 1 for grey: pictures are converted.
    #[serde(default = "three")]
    pub channels: i64,
    /// Pictures of the training part at most, evenly spread; 0 for all.
    #[serde(default)]
    pub train_limit: usize,
    /// Pictures of the validation and test parts each at most, evenly spread; 0 for all.
    #[serde(default)]
    pub test_limit: usize,
    /// End at the first picture that cannot be read, instead of leaving it out.
    #[serde(default)]
    pub strict: bool,
}

fn tenth() -> f64 {
    0.1
}

fn three() -> i64 {
    3
}

impl DataSettings {
    /// Of pictures in `train`, all else by default.
    pub fn new(train: Source) -> Self {
        Self {
            train,
            valid: None,
            valid_share: tenth(),
            test: None,
            classes: Vec::new(),
            channels: three(),
            train_limit: 0,
            test_limit: 0,
            strict: false,
        }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        if !matches!(self.channels, 1 | 3) {
            let reason = format!("must be 1 or 3, got {}", self.channels);
            return Err(Error::config("data.channels", reason));
        }
        check::dropout("data.valid_share", self.valid_share)
    }
}

/// A data set made ready.
#[derive(Debug)]
pub struct Prepared {
    /// Pictures to train on.
    pub train: Part,
    /// Pictures that choose the epoch.
    pub valid: Part,
    /// Pictures that are judged at the end.
    pub test: Option<Part>,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Pictures that cannot be read.
    pub bad: Vec<Bad>,
}

impl Prepared {
    /// Opens and divides the data set in `folder`.
    ///
    /// # Errors
    /// Those of the files; [`Error::Config`] for a part without pictures and for names of classes that have names; [`Error::Data`] when the
    /// parts do not have the same classes.
    pub fn open(folder: &Path, settings: &DataSettings) -> Result<Self> {
        settings.validate()?;
        let all = Part::all(settings.train.open(folder, &[])?);
        let known = all.classes().to_vec();
        let open = |source: &Source| source.open(folder, &known).map(Part::all);
        let test = settings.test.as_ref().map(open).transpose()?;
        let (valid, train) = match &settings.valid {
            Some(valid) => (open(valid)?, all),
            None => all
                .divide(settings.valid_share, 0)
                .map(|[valid, train]| (valid, train))?,
        };
        let classes = classes(&settings.classes, &train)?;
        for (name, part) in [("valid", Some(&valid)), ("test", test.as_ref())] {
            let Some(part) = part else { continue };
            same_classes(name, part, &known, classes.len())?;
        }
        let (mut bad, mut budget) = (Vec::new(), KEPT);
        let mut keep = |part: Part| -> Result<Part> {
            let (part, left_out) = part.kept(&mut budget, settings.strict)?;
            bad.extend(left_out);
            Ok(part)
        };
        Ok(Self {
            train: keep(train.thinned(settings.train_limit))?,
            valid: keep(valid.thinned(settings.test_limit))?,
            test: test
                .map(|test| keep(test.thinned(settings.test_limit)))
                .transpose()?,
            classes,
            bad,
        })
    }
}
