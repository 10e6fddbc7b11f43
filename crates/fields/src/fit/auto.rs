//! The frequency of a network, chosen by `FreSh` before it is fitted.

use std::path::Path;

use densely_core::{Error, Result, seeded};
use densely_data::image::{self, AnyImage, Filter};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::resolve::{convention_of, resolve};
use super::settings::{DataSettings, FieldSettings, ModelSettings};
use super::signal::{load, picture};
use crate::fresh::{
    Candidate, Choice, FINER, FOURIER, FreshOptions, Network, SIREN, Score, Search, choose,
};
use crate::signals::{Convention, Coordinates, Split};

/// How a frequency is chosen. The paper compares at the full size with 10 draws ([`AutoOptions::paper`]); the default takes a fraction of that time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutoOptions {
    /// Pixels that the shorter side of a picture is reduced to, of films each side; 0 leaves its size. The lowest frequencies, which are compared, stay as
    /// they are.
    pub side: usize,
    /// Values to choose from; those of the paper when empty.
    pub values: Vec<f64>,
    /// Random draws, and what is compared.
    pub fresh: FreshOptions,
}

impl Default for AutoOptions {
    fn default() -> Self {
        Self {
            side: 192,
            values: Vec::new(),
            fresh: FreshOptions {
                draws: 5,
                abandon: true,
                ..FreshOptions::default()
            },
        }
    }
}

impl AutoOptions {
    /// As published.
    pub fn paper() -> Self {
        Self {
            side: 0,
            values: Vec::new(),
            fresh: FreshOptions::default(),
        }
    }
}

/// The search for the networks of a preset.
fn search_of(preset: &str) -> Option<Search> {
    match preset {
        "siren" | "siren-fresh" => Some(SIREN),
        "ffn-fresh" | "ffn-image" | "cam-image" => Some(FOURIER),
        "finer" => Some(FINER),
        _ => None,
    }
}

/// Chooses the frequency of the network of `settings` by the spectrum of the signal in `folder`, computing on `device`, and puts it there. `observe` sees each
/// score.
///
/// # Errors
/// [`Error::Config`] for networks without such a setting, signals other than pictures and films, and where the setting stands there already; those of reading
/// the signal and of [`choose`].
pub fn choose_frequency(
    settings: &mut FieldSettings,
    folder: &Path,
    options: &AutoOptions,
    device: Device,
    observe: &mut dyn FnMut(&Score),
) -> Result<Choice> {
    let preset = settings.model.preset.clone();
    if !matches!(
        settings.data,
        DataSettings::Image(_) | DataSettings::Video(_)
    ) {
        return Err(no_spectrum(&settings.data));
    }
    let Some(search) = search_of(&preset) else {
        let reason = format!(
            "chooses a frequency, and `{preset}` has none; take siren-fresh, siren, finer, ffn-fresh, ffn-image or cam-image"
        );
        return Err(Error::config("--auto", reason));
    };
    if settings.model.config.contains_key(search.setting) {
        let reason = format!("chooses `{}`, which is set", search.setting);
        return Err(Error::config("--auto", reason));
    }
    let target = target(&settings.data, folder, options.side)?;
    let size = target.size();
    let channels = size[0] as usize;
    let axes: Vec<usize> = size[1..].iter().map(|side| *side as usize).collect();
    let coordinates = settings
        .model
        .convention
        .unwrap_or_else(|| convention_of(&preset))
        .coordinates;
    let values = if options.values.is_empty() {
        search.values
    } else {
        options.values.as_slice()
    };
    let candidates: Vec<Candidate> = values
        .iter()
        .map(|value| {
            let model = with(&settings.model, search.setting, *value);
            let axes = axes.clone();
            Candidate::new(search.setting, *value, move |seed| {
                let (preset, config) = resolve(&model, &axes, channels)?;
                let vs = VarStore::new(device);
                let network = seeded(seed, || (preset.build)(&config, &vs.root()))?;
                Ok(Box::new(move |xs: &Tensor| {
                    // Places come from -1 to 1, ends included.
                    let coords = match coordinates {
                        Coordinates::Ends => xs.shallow_clone(),
                        Coordinates::Centres => (xs + 1.0) / 2.0,
                    };
                    super::field::values_of(&*network, &coords, device)
                }) as Network)
            })
        })
        .collect();
    let choice = choose(&target, &candidates, &options.fresh, observe)?;
    drop(candidates);
    settings.model = with(&settings.model, search.setting, choice.chosen.value);
    Ok(choice)
}

fn with(model: &ModelSettings, setting: &str, value: f64) -> ModelSettings {
    let mut model = model.clone();
    model.config.insert(setting.to_owned(), json!(value));
    model
}

/// The signal, reduced: `[channels, axes…]` with values from -1 to 1.
fn target(data: &DataSettings, folder: &Path, side: usize) -> Result<Tensor> {
    match data {
        DataSettings::Image(settings) => {
            let picture = picture(settings, folder)?;
            Ok(reduced(picture, side)?.to_tensor() * 2.0 - 1.0)
        }
        DataSettings::Video(_) => {
            let loaded = load(data, folder, Convention::SYMMETRIC)?;
            let signal = &loaded.signal;
            let &[_, height, width] = signal.axes() else {
                return Err(no_spectrum(data));
            };
            let small = |of: usize| if side == 0 { of } else { of.min(side) } as i64;
            // Means of blocks: what is too fine for the smaller film must not come back as something coarse. Frame by frame, since a whole film in
            // floating point can be more than the memory holds.
            let all = signal.select(Split::All)?;
            let frames = all
                .batches(height * width, None)?
                .map(|frame| {
                    let frame = frame?.values.to_kind(Kind::Float);
                    let frame = frame.f_view([height as i64, width as i64, -1])?;
                    let frame = frame.permute([2, 0, 1]);
                    Ok(frame.f_adaptive_avg_pool2d([small(height), small(width)])?)
                })
                .collect::<Result<Vec<_>>>()?;
            let sides = [small(frames.len()), small(height), small(width)];
            let film = Tensor::f_stack(&frames, 1)?.unsqueeze(0);
            Ok(film.f_adaptive_avg_pool3d(sides)?.squeeze_dim(0))
        }
        _ => Err(no_spectrum(data)),
    }
}

fn no_spectrum(data: &DataSettings) -> Error {
    let reason = format!(
        "compares spectra of pictures and films; this is a {}",
        data.kind()
    );
    Error::config("--auto", reason)
}

fn reduced(picture: AnyImage, side: usize) -> Result<AnyImage> {
    let (width, height) = (picture.width(), picture.height());
    let shorter = width.min(height);
    if side == 0 || side >= shorter {
        return Ok(picture);
    }
    let scaled = |of: usize| (of * side + shorter / 2) / shorter;
    let eight = picture.into_eight();
    Ok(image::resize(&eight, scaled(width), scaled(height), Filter::Bilinear)?.into())
}
