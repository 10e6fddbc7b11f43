//! Pairs of spoilt and clean pictures.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use densely_core::{Error, Result};
use densely_data::image::sources::{Pictures, pictures_below};
use densely_data::image::{AnyImage, read};
use tch::Tensor;

use super::settings::{DataSettings, PairSource};
use crate::classify::converted;
use crate::data::{Bad, KEPT, Part};
use crate::degrade::{Degradation, degrade};
use crate::transforms::{PairTransform, Rng};

/// Pictures with their spoilt counterparts.
#[derive(Debug, Clone)]
pub struct Pairs {
    /// The name in reports.
    pub name: String,
    pub(super) clean: Part,
    pub(super) spoilt: Option<Part>,
    degrade: Vec<Degradation>,
    channels: i64,
}

impl Pairs {
    fn open(folder: &Path, source: &PairSource, settings: &DataSettings) -> Result<Self> {
        let open = |path: &str| -> Result<Part> {
            let files: Arc<dyn Pictures> = Arc::new(Files::below(&folder.join(path))?);
            Ok(Part::all(files))
        };
        let clean = open(&source.clean)?;
        let spoilt = source.spoilt.as_deref().map(open).transpose()?;
        if let (Some(spoilt), Some(path)) = (&spoilt, &source.spoilt) {
            go_together(folder, (&source.clean, &clean), (path, spoilt))?;
        }
        Ok(Self {
            name: source.name(),
            clean,
            spoilt,
            degrade: settings.degrade.clone(),
            channels: settings.channels,
        })
    }

    fn thinned(self, count: usize) -> Self {
        Self {
            clean: self.clean.thinned(count),
            spoilt: self.spoilt.map(|part| part.thinned(count)),
            ..self
        }
    }

    /// Decoded and kept in memory, where `budget` is enough. Of pairs none may be bad, or the two would no longer go together.
    fn kept(self, budget: &mut usize, strict: bool, bad: &mut Vec<Bad>) -> Result<Self> {
        let paired = self.spoilt.is_some();
        let mut keep = |part: Part| -> Result<Part> {
            let (part, left_out) = part.kept(budget, strict || paired)?;
            bad.extend(left_out);
            Ok(part)
        };
        Ok(Self {
            clean: keep(self.clean)?,
            spoilt: self.spoilt.map(keep).transpose()?,
            ..self
        })
    }

    /// Pairs.
    pub fn len(&self) -> usize {
        self.clean.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.clean.is_empty()
    }

    /// A whole pair, `[channels, height, width]` each: spoilt and clean. What is drawn for the spoilt one depends on the picture's place alone, so that
    /// every model and epoch is judged by the same noise.
    ///
    /// # Errors
    /// Those of the pictures' files; [`Error::Shape`] when the two differ in size.
    pub fn whole(&self, place: usize) -> Result<[Tensor; 2]> {
        let xs = |part: &Part| -> Result<Tensor> {
            Ok(converted(&part.picture(place)?, self.channels).to_tensor())
        };
        let clean = xs(&self.clean)?;
        let spoilt = match &self.spoilt {
            Some(part) => xs(part)?,
            None => degrade(
                &clean,
                &self.degrade,
                &mut Rng::for_picture(0, u64::MAX, place as u64),
            )?,
        };
        if spoilt.size() == clean.size() {
            return Ok([spoilt, clean]);
        }
        Err(Error::Shape {
            what: format!("the spoilt picture of {}", self.clean.name(place)),
            expected: format!("{:?} as the clean one", clean.size()),
            got: format!("{:?}", spoilt.size()),
        })
    }

    pub(super) fn square(
        &self,
        place: usize,
        augment: &PairTransform,
        rng: &mut Rng,
    ) -> Result<(Tensor, Tensor)> {
        let clean = self.clean.picture(place)?;
        let clean = converted(&clean, self.channels);
        let square = match &self.spoilt {
            Some(part) => {
                let spoilt = part.picture(place)?;
                augment.apply(&converted(&spoilt, self.channels), &clean, rng)
            }
            None => augment.apply_clean(&clean, &self.degrade, rng),
        };
        square.map_err(|error| match error {
            Error::Shape { expected, got, .. } => Error::Shape {
                what: self.clean.name(place),
                expected,
                got,
            },
            other => other,
        })
    }
}

/// Whether clean and spoilt pictures are as many, and of the same names where any name is in both.
fn go_together(
    folder: &Path,
    (clean_path, clean): (&str, &Part),
    (spoilt_path, spoilt): (&str, &Part),
) -> Result<()> {
    let names = |part: &Part| {
        (0..part.len())
            .map(|place| part.name(place))
            .collect::<Vec<_>>()
    };
    let (clean, spoilt) = (names(clean), names(spoilt));
    let odd = clean.iter().zip(&spoilt).find(|(a, b)| stem(a) != stem(b));
    let known: HashSet<&str> = clean.iter().map(|name| stem(name)).collect();
    let some_alike = spoilt.iter().any(|name| known.contains(stem(name)));
    if clean.len() == spoilt.len() && (odd.is_none() || !some_alike) {
        if let Some((a, b)) = odd {
            tracing::warn!(
                "{clean_path} and {spoilt_path} have no name in common: paired in their order, {a} with {b}"
            );
        }
        return Ok(());
    }
    let reason = format!(
        "{clean_path} has {} pictures and {spoilt_path} has {}; the first that do not go together: {}",
        clean.len(),
        spoilt.len(),
        odd.map_or("the last".to_owned(), |(a, b)| format!("{a} and {b}"))
    );
    Err(Error::data(folder, reason))
}

/// All pictures below a folder, without classes.
struct Files {
    root: PathBuf,
    files: Vec<PathBuf>,
}

impl Files {
    fn below(root: &Path) -> Result<Self> {
        Ok(Self {
            root: root.to_owned(),
            files: pictures_below(root)?,
        })
    }
}

impl Pictures for Files {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn picture(&self, i: usize) -> Result<AnyImage> {
        let none = || Error::config("picture", format!("there is none with number {i}"));
        read(self.files.get(i).ok_or_else(none)?)
    }

    fn label(&self, _: usize) -> Option<usize> {
        None
    }

    fn name(&self, i: usize) -> String {
        let path = self.files.get(i).map_or(Path::new(""), PathBuf::as_path);
        path.strip_prefix(&self.root)
            .unwrap_or(path)
            .display()
            .to_string()
    }

    fn classes(&self) -> &[String] {
        &[]
    }
}

/// A name without folder and ending.
fn stem(name: &str) -> &str {
    let last = name.rsplit(['/', '\\']).next().unwrap_or(name);
    last.rsplit_once('.').map_or(last, |(stem, _)| stem)
}

/// A data set made ready.
#[derive(Debug)]
pub struct Prepared {
    /// Pairs to train on.
    pub train: Pairs,
    /// Pairs that choose the epoch.
    pub valid: Pairs,
    /// Pairs that are judged at the end.
    pub test: Vec<Pairs>,
    /// Pictures that cannot be read.
    pub bad: Vec<Bad>,
}

impl Prepared {
    /// Opens and divides the data set in `folder`.
    ///
    /// # Errors
    /// Those of [`DataSettings::validate`] and of the files; [`Error::Config`] for a part without pictures.
    pub fn open(folder: &Path, settings: &DataSettings) -> Result<Self> {
        settings.validate()?;
        let open = |source| Pairs::open(folder, source, settings);
        let all = open(&settings.train)?;
        let (train, valid) = if let Some(valid) = &settings.valid {
            (all, open(valid)?)
        } else {
            let share = |part: &Part| part.split(settings.valid_share, 0);
            let [valid, train] = share(&all.clean)?;
            let (spoilt_valid, spoilt_train) = match &all.spoilt {
                Some(part) => share(part).map(|[valid, train]| (Some(valid), Some(train)))?,
                None => (None, None),
            };
            let pairs = |clean, spoilt| Pairs {
                clean,
                spoilt,
                ..all.clone()
            };
            (pairs(train, spoilt_train), pairs(valid, spoilt_valid))
        };
        let (mut bad, mut budget) = (Vec::new(), KEPT);
        let mut keep = |pairs: Pairs| pairs.kept(&mut budget, settings.strict, &mut bad);
        let train = keep(train)?;
        let valid = keep(valid.thinned(settings.test_limit))?;
        let mut test = Vec::new();
        for source in &settings.test {
            test.push(keep(open(source)?.thinned(settings.test_limit))?);
        }
        Ok(Self {
            train,
            valid,
            test,
            bad,
        })
    }
}
