//! Second moments of keys for edits: of files, measured on a text, or the identity.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use densely_core::{Error, Result};
use densely_interp::edit::Moments;
use densely_interp::edit::moments::{Windows, file_of, measure};
use densely_lm::{Lm, Opened};
use densely_train::progress::Bar;

use crate::Common;
use crate::commands::interp::model_name;

/// Options on second moments.
#[derive(Debug, clap::Args)]
pub(crate) struct MomentsArguments {
    /// Second moments of keys: `identity`, a file, or a folder of files; what --moments-text measures when that is given, else `identity`.
    #[arg(
        long,
        value_name = "identity|FILE|DIR",
        conflicts_with = "moments_text"
    )]
    moments: Option<String>,
    /// Measure them on this text; kept in --moments-dir and read from there the next time.
    #[arg(long, value_name = "FILE")]
    moments_text: Option<PathBuf>,
    /// Tokens of the text.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 100_000,
        requires = "moments_text"
    )]
    moments_tokens: usize,
    /// Tokens that go through the model at once; the model's context, or 1024, when left out.
    #[arg(long, value_name = "N", requires = "moments_text")]
    moments_window: Option<usize>,
    /// Folder for them; `runs/moments-<model>` when left out.
    #[arg(long, value_name = "DIR", requires = "moments_text")]
    moments_dir: Option<PathBuf>,
}

/// Most bytes of a text that are read for a token that is wanted; long words have fewer.
const BYTES_PER_TOKEN: u64 = 32;
/// Layers that are measured in one pass: bounds the memory.
const TOGETHER: usize = 4;
/// Layers that are kept in memory: five of an edit, and one that comes.
const KEPT: usize = 6;
/// Windows between two saves.
const EVERY: usize = 50;

/// Where moments come from.
#[derive(Debug)]
pub(crate) struct Source {
    /// `None` is the identity.
    path: Option<PathBuf>,
    /// What was used last comes last.
    kept: Vec<(usize, Rc<Moments>)>,
    /// What they are, in words.
    pub(crate) said: String,
}

impl MomentsArguments {
    /// The option that was given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        match (&self.moments, &self.moments_text) {
            (Some(_), _) => Some("--moments"),
            (None, Some(_)) => Some("--moments-text"),
            (None, None) => None,
        }
    }

    /// Whether the identity stands in their place.
    pub(crate) fn are_identity(&self) -> bool {
        self.moments_text.is_none() && matches!(self.moments.as_deref(), None | Some("identity"))
    }

    /// Measures what is missing, and says what there is.
    pub(crate) fn source(
        &self,
        opened: &Opened,
        model: &Path,
        layers: &[usize],
        common: &Common,
    ) -> Result<Source> {
        if let Some(text) = &self.moments_text {
            let folder = match &self.moments_dir {
                Some(folder) => folder.clone(),
                None => PathBuf::from(format!("runs/moments-{}", model_name(model))),
            };
            self.measure(opened, text, &folder, layers, common)?;
            return Source::new(&opened.model, Some(folder), layers);
        }
        let path = self.moments.as_ref().filter(|_| !self.are_identity());
        Source::new(&opened.model, path.map(PathBuf::from), layers)
    }

    fn measure(
        &self,
        opened: &Opened,
        path: &Path,
        folder: &Path,
        layers: &[usize],
        common: &Common,
    ) -> Result<()> {
        if layers.is_empty() {
            return Ok(());
        }
        let text = beginning(path, self.moments_tokens as u64 * BYTES_PER_TOKEN)?;
        let context = opened.model.config().n_ctx.clamp(1, 1024) as usize;
        let length = self.moments_window.unwrap_or(context);
        let windows = Windows::new(&opened.tokenizer, &text, self.moments_tokens, length)?;
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        for some in layers.chunks(TOGETHER) {
            let missing = some.iter().any(|layer| !file_of(folder, *layer).is_file());
            if missing {
                tracing::info!(
                    "measuring second moments of layers {some:?} over {} tokens",
                    windows.count()
                );
            }
            let bar = Bar::new(windows.rows.len() as u64, 0, common.quiet || !missing);
            measure(
                &opened.model,
                &windows,
                some,
                Some(folder),
                EVERY,
                &mut |done, _| bar.update(0, done as u64, None),
            )?;
            bar.finish();
        }
        Ok(())
    }
}

/// The first bytes of a text, up to a whole character.
fn beginning(path: &Path, most: u64) -> Result<String> {
    use std::io::Read;

    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    let mut bytes = Vec::new();
    file.take(most)
        .read_to_end(&mut bytes)
        .map_err(Error::io(path))?;
    let cut = bytes.len() as u64 == most;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => {
            let whole = error.utf8_error();
            // A character that the limit cuts in two is left out.
            if cut && whole.error_len().is_none() {
                let mut bytes = error.into_bytes();
                bytes.truncate(whole.valid_up_to());
                return String::from_utf8(bytes)
                    .map_err(|_| Error::data(path, "must be UTF-8 text, and is not"));
            }
            Err(Error::data(path, "must be UTF-8 text, and is not"))
        }
    }
}

impl Source {
    fn new(model: &Lm, path: Option<PathBuf>, layers: &[usize]) -> Result<Self> {
        let mut source = Self {
            path,
            kept: Vec::new(),
            said: Moments::identity(model.config().d_mlp)?.described(),
        };
        if let (Some(path), Some(layer)) = (&source.path, layers.first()) {
            let place = path.display().to_string();
            let first = source.get(model, *layer)?;
            source.said = format!("{} ({place})", first.described());
        }
        Ok(source)
    }

    /// Those of a layer of the model as it was when they were measured.
    pub(crate) fn get(&mut self, model: &Lm, layer: usize) -> Result<Rc<Moments>> {
        if let Some(at) = self.kept.iter().position(|(own, _)| *own == layer) {
            let held = self.kept.remove(at);
            let found = Rc::clone(&held.1);
            self.kept.push(held);
            return Ok(found);
        }
        let found = Rc::new(match &self.path {
            None => Moments::identity(model.config().d_mlp)?,
            Some(path) => Moments::of_layer(path, model, layer)?,
        });
        if self.kept.len() >= KEPT {
            self.kept.remove(0);
        }
        self.kept.push((layer, Rc::clone(&found)));
        Ok(found)
    }
}
