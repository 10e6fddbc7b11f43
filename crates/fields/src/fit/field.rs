//! A fitted field: its values anywhere, and what is made of them.

use std::collections::BTreeMap;
use std::path::Path;

use densely_core::registry::find;
use densely_core::weights::{self, Strictness};
use densely_core::{Error, Model, Result, Tensors, check, seeded};
use densely_data::Image;
use densely_data::image::write_png;
use densely_train::run::Kept;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

use super::file;
use super::radiance::{RadianceConfig, RadianceField, RayConfig, Seen};
use super::settings::{DataSettings, check_resolution};
use super::shape::{self, CUBE};
use crate::mesh::{Mesh, Normalisation};
use crate::models::PRESETS;
use crate::scene::View;
use crate::signals::{Convention, Coordinates, Signal, to_unit};

/// What a field needs beside its weights; saved in each checkpoint as `preprocess.json`, and in files of fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// Name of the preset.
    pub preset: String,
    /// Its whole config.
    pub config: Value,
    /// What was fitted.
    pub signal: Described,
    /// How it was read: the same cut and size are judged again. `None` in files of other programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataSettings>,
}

/// What was fitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Described {
    /// A picture.
    Image {
        /// Rows.
        height: usize,
        /// Pixels in a row.
        width: usize,
        /// 1 for grey, 3 for colours.
        channels: usize,
        /// What the network's numbers mean.
        convention: Convention,
    },
    /// A sound.
    Sound {
        /// Samples of each channel.
        samples: usize,
        /// Channels.
        channels: usize,
        /// Samples a second.
        sample_rate: u32,
        /// What the network's numbers mean.
        convention: Convention,
    },
    /// A film.
    Video {
        /// Pictures.
        frames: usize,
        /// Rows.
        height: usize,
        /// Pixels in a row.
        width: usize,
        /// 1 for grey, 3 for colours.
        channels: usize,
        /// What the network's numbers mean.
        convention: Convention,
    },
    /// A surface.
    Mesh {
        /// How it was scaled into the cube from -1 to 1.
        normalisation: Normalisation,
        /// How places of the cube become coordinates.
        coordinates: Coordinates,
    },
    /// A scene.
    Scene {
        /// How rays are rendered.
        rays: RayConfig,
        /// Radius of a pixel's cone at distance 1 along the camera's axis.
        pixel_radius: f64,
        /// The cameras that it was fitted to.
        views: Vec<View>,
        /// Numbers of those that were held out.
        test: Vec<usize>,
    },
}

impl Described {
    /// What it is called in front of people.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Image { .. } => "image",
            Self::Sound { .. } => "sound",
            Self::Video { .. } => "video",
            Self::Mesh { .. } => "mesh",
            Self::Scene { .. } => "scene",
        }
    }

    /// Refuses sizes that no signal has: files are not trusted with memory.
    fn validate(&self) -> Result<()> {
        const MOST: usize = 1 << 40;
        let (sizes, channels) = match self {
            Self::Image {
                height,
                width,
                channels,
                ..
            } => (vec![*height, *width], *channels),
            Self::Sound {
                samples,
                channels,
                sample_rate,
                ..
            } => {
                check::positive("sample_rate", i64::from(*sample_rate))?;
                (vec![*samples], *channels)
            }
            Self::Video {
                frames,
                height,
                width,
                channels,
                ..
            } => (vec![*frames, *height, *width], *channels),
            Self::Mesh { normalisation, .. } => {
                check::above_zero("normalisation.scale", normalisation.scale)?;
                if normalisation.centre.iter().all(|x| x.is_finite()) {
                    return Ok(());
                }
                return Err(Error::config("normalisation.centre", "must be finite"));
            }
            Self::Scene {
                rays,
                pixel_radius,
                views,
                test,
            } => {
                rays.validate()?;
                check::above_zero("pixel_radius", *pixel_radius)?;
                for view in views {
                    view.lens.validate()?;
                }
                if test.iter().any(|view| *view >= views.len()) {
                    return Err(Error::config("test", "names a view that is not there"));
                }
                return Ok(());
            }
        };
        let all = sizes
            .iter()
            .try_fold(1usize, |all, size| all.checked_mul(*size));
        if all.is_none_or(|all| all == 0 || all > MOST) || !(1..=64).contains(&channels) {
            let reason = format!("sizes {sizes:?} with {channels} channels are those of no signal");
            return Err(Error::config("signal", reason));
        }
        Ok(())
    }
}

/// The network.
#[derive(Debug)]
pub(super) enum Network {
    /// From places to values.
    Values(Box<dyn Model>),
    /// From places and directions to light.
    Radiance(RadianceField),
}

impl Network {
    /// Draws the network that a pipeline describes.
    pub(super) fn build(pipeline: &Pipeline, vs: &VarStore, seed: i64) -> Result<Self> {
        seeded(seed, || {
            if let Described::Scene {
                rays, pixel_radius, ..
            } = &pipeline.signal
            {
                let config = RadianceConfig::of_preset(&pipeline.preset, &pipeline.config)?;
                let field = RadianceField::build(&vs.root(), &config, rays)?;
                return Ok(Self::Radiance(field.with_pixel_radius(*pixel_radius)));
            }
            let preset = find(PRESETS, &pipeline.preset)?;
            Ok(Self::Values((preset.build)(&pipeline.config, &vs.root())?))
        })
    }
}

/// A fitted field.
#[derive(Debug)]
pub struct Field {
    pipeline: Pipeline,
    network: Network,
    vs: VarStore,
}

/// A part of a picture, in shares of its height and width.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// Where it begins: of the height and of the width.
    pub start: [f64; 2],
    /// How much it shows: of the height and of the width.
    pub size: [f64; 2],
}

impl Window {
    /// All of the picture.
    pub const WHOLE: Self = Self {
        start: [0.0; 2],
        size: [1.0; 2],
    };

    fn validate(self) -> Result<()> {
        let fits = (0..2).all(|axis| {
            let (start, size) = (self.start[axis], self.size[axis]);
            start >= 0.0 && size > 0.0 && start + size <= 1.0 + 1e-9
        });
        if fits {
            return Ok(());
        }
        let reason = format!(
            "must lie in the picture, from 0 to 1: begins at {:?} and shows {:?}",
            self.start, self.size
        );
        Err(Error::config("window", reason))
    }
}

impl Field {
    /// Opens the best judgement of the run in a folder, or a file that [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no such folder or it holds no finished judgement; [`Error::Corrupt`], [`Error::Config`] and [`Error::Weights`] for
    /// files that are damaged or do not belong together.
    pub fn open(path: &Path, device: Device) -> Result<Self> {
        if path.is_file() {
            let (field, tensors) = file::read(path, |pipeline| {
                let field = Self::build(pipeline, device)?;
                let own = weights::named(&field.vs);
                Ok((field, own))
            })?;
            weights::load_tensors(&field.vs, path, &tensors, Strictness::All)?;
            return Ok(field);
        }
        let kept = Kept::<Pipeline>::open(path, "densely field fit")?;
        let field = Self::build(kept.pipeline.clone(), device)?;
        kept.load_weights(&field.vs)?;
        Ok(field)
    }

    fn build(pipeline: Pipeline, device: Device) -> Result<Self> {
        pipeline.signal.validate()?;
        let vs = VarStore::new(device);
        // Loaded weights replace the first ones; drawing them must not disturb a training of another thread.
        let network = Network::build(&pipeline, &vs, 0)?;
        Ok(Self {
            pipeline,
            network,
            vs,
        })
    }

    /// Writes the field as one file, in so many bits per weight; see [`Precision`](file::Precision). Gives the size of the file, bytes.
    ///
    /// # Errors
    /// [`Error::Config`] for bits out of range; [`Error::Io`].
    pub fn save(&self, path: &Path, precision: file::Precision) -> Result<u64> {
        file::write(path, &self.pipeline, &weights::named(&self.vs), precision)
    }

    /// What was fitted, by what.
    pub const fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// Trainable values.
    pub fn parameters(&self) -> u64 {
        densely_core::nn::parameter_count(&self.vs)
    }

    /// The network from places to values.
    fn values(&self) -> Result<&dyn Model> {
        match &self.network {
            Network::Values(network) => Ok(&**network),
            Network::Radiance(_) => Err(self.not_of("a value for a place")),
        }
    }

    /// The network from places to values, and where it computes.
    pub(super) fn network(&self) -> Result<(&dyn Model, Device)> {
        Ok((self.values()?, self.vs.device()))
    }

    fn not_of(&self, what: &str) -> Error {
        let reason = format!(
            "a field of kind {} has not {what}",
            self.pipeline.signal.kind()
        );
        Error::config("field", reason)
    }

    /// Values at coordinates `[n, axes]` as the network takes them: f32 `[n, channels]` on the CPU, as it gives them. Computed in chunks.
    ///
    /// # Errors
    /// [`Error::Config`] for scenes; [`Error::Shape`] for another number of axes.
    pub fn at(&self, coords: &Tensor) -> Result<Tensor> {
        values_of(self.values()?, coords, self.vs.device())
    }

    /// Signed distances at points `[n, 3]` of the cube from -1 to 1, into which the surface was scaled: `[n]`, in its units.
    ///
    /// # Errors
    /// [`Error::Config`] for fields of other kinds.
    pub fn distances(&self, points: &Tensor) -> Result<Tensor> {
        let Described::Mesh { coordinates, .. } = &self.pipeline.signal else {
            return Err(self.not_of("distances"));
        };
        check::shape("points", points, &[None, Some(3)])?;
        Ok(self
            .at(&shape::coordinates(points, *coordinates))?
            .squeeze_dim(1))
    }

    /// A picture of `height` × `width` pixels of what `window` shows; of films at `time`, a share of their length from 0 to 1. At the size of what was fitted
    /// pixels fall on those of the original. `observe` is told of rows done and rows in all.
    ///
    /// # Errors
    /// [`Error::Config`] for fields of other kinds, sizes that no picture has and windows that do not lie in the picture.
    pub fn picture(
        &self,
        [height, width]: [usize; 2],
        window: Window,
        time: f64,
        observe: &mut dyn FnMut(usize, usize),
    ) -> Result<Image<u8>> {
        window.validate()?;
        let (sizes, channels, convention) = match self.pipeline.signal {
            Described::Image {
                height,
                width,
                channels,
                convention,
            } => (vec![height, width], channels, convention),
            Described::Video {
                frames,
                height,
                width,
                channels,
                convention,
            } => (vec![frames, height, width], channels, convention),
            _ => return Err(self.not_of("pictures")),
        };
        for (field, side) in [("height", height), ("width", width)] {
            if !(1..=65_535).contains(&side) {
                let reason = format!("must lie in 1 to 65535 pixels, got {side}");
                return Err(Error::config(field, reason));
            }
        }
        if !(0.0..=1.0).contains(&time) {
            return Err(Error::config(
                "time",
                format!("must lie in 0 to 1, got {time}"),
            ));
        }
        let [of_rows, of_columns] = [sizes[sizes.len() - 2], sizes[sizes.len() - 1]];
        let along = |axis: usize, count: usize, of: usize| -> Vec<f32> {
            let share = |i: usize| {
                let within = (i as f64 + 0.5) / count as f64;
                window.start[axis] + within * window.size[axis]
            };
            (0..count)
                .map(|i| coordinate(share(i), of, convention.coordinates))
                .collect()
        };
        let columns = Tensor::from_slice(&along(1, width, of_columns));
        let rows = along(0, height, of_rows);
        let moment = (sizes.len() == 3).then(|| {
            let frame = time * (sizes[0] - 1) as f64;
            coordinate(
                (frame + 0.5) / sizes[0] as f64,
                sizes[0],
                convention.coordinates,
            )
        });
        let network = self.values()?;
        let mut pixels = Vec::with_capacity(height * width * channels);
        let at_once = (ROWS_OF / width).max(1);
        for (done, rows) in rows.chunks(at_once).enumerate() {
            observe(done * at_once, height);
            let rows = Tensor::from_slice(rows);
            let mut axes = vec![rows, columns.shallow_clone()];
            if let Some(moment) = moment {
                axes.insert(0, Tensor::from_slice(&[moment]));
            }
            let coords = Tensor::stack(&Tensor::meshgrid_indexing(&axes, "ij"), -1);
            let coords = coords.view([-1, sizes.len() as i64]);
            let values = values_of(network, &coords, self.vs.device())?;
            pixels.extend(bytes_of(&to_unit(&values, convention))?);
        }
        observe(height, height);
        Image::new(width, height, channels, pixels)
    }

    /// The sound at `sample_rate` samples a second: f32 `[samples, channels]` in -1 to 1.
    ///
    /// # Errors
    /// [`Error::Config`] for fields of other kinds and a rate of 0.
    pub fn sound(&self, sample_rate: u32) -> Result<Tensor> {
        let Described::Sound {
            samples,
            sample_rate: own,
            convention,
            ..
        } = self.pipeline.signal
        else {
            return Err(self.not_of("sound"));
        };
        check::positive("sample_rate", i64::from(sample_rate))?;
        let count = (samples as f64 * f64::from(sample_rate) / f64::from(own)).round();
        if count > MOST_SAMPLES {
            let reason = format!("makes {count} samples; at most {MOST_SAMPLES} are made");
            return Err(Error::config("sample_rate", reason));
        }
        let count = (count as usize).max(1);
        let coords: Vec<f32> = (0..count)
            .map(|i| {
                coordinate(
                    (i as f64 + 0.5) / count as f64,
                    samples,
                    convention.coordinates,
                )
            })
            .collect();
        let values = self.at(&Tensor::from_slice(&coords).unsqueeze(1))?;
        Ok(to_unit(&values, convention).clamp(0.0, 1.0) * 2.0 - 1.0)
    }

    /// The surface, by marching cubes on a grid of `resolution` points along each axis, in the coordinates of the mesh that was fitted.
    ///
    /// # Errors
    /// [`Error::Config`] for fields of other kinds and resolutions out of range; [`Error::Data`] when there is no surface.
    pub fn surface(&self, resolution: usize) -> Result<Mesh> {
        let Described::Mesh {
            normalisation,
            coordinates,
        } = &self.pipeline.signal
        else {
            return Err(self.not_of("a surface"));
        };
        check_resolution("resolution", resolution)?;
        let network = self.values()?;
        let surface = CUBE.surface_of([resolution; 3], 1 << 17, |points| {
            let coords = shape::coordinates(points, *coordinates);
            values_of(network, &coords, self.vs.device())
        })?;
        let Normalisation { centre, scale } = normalisation;
        let back = |vertex: &[f64; 3]| std::array::from_fn(|i| vertex[i] / scale + centre[i]);
        Mesh::new(
            surface.vertices().iter().map(back).collect(),
            surface.faces().to_vec(),
        )
    }

    /// What a camera sees.
    ///
    /// # Errors
    /// [`Error::Config`] for fields of other kinds.
    pub fn view(&self, view: &View) -> Result<Seen> {
        match &self.network {
            Network::Radiance(field) => field.render_view(view),
            Network::Values(_) => Err(self.not_of("views")),
        }
    }
}

/// Most samples of a sound.
const MOST_SAMPLES: f64 = 1e9;

/// Pixels that are computed at once.
const ROWS_OF: usize = 1 << 17;

/// Points whose values are computed at once.
const AT_ONCE: i64 = 1 << 16;

/// The coordinate of a place that is a share of an axis with `of` samples.
fn coordinate(share: f64, of: usize, convention: Coordinates) -> f32 {
    let value = match convention {
        Coordinates::Centres => share,
        Coordinates::Ends if of == 1 => -1.0,
        Coordinates::Ends => 2.0 * (share * of as f64 - 0.5) / (of as f64 - 1.0) - 1.0,
    };
    value as f32
}

/// Values of a network at coordinates `[n, axes]`, chunk by chunk without gradients: f32 `[n, channels]` on the CPU.
pub(super) fn values_of(network: &dyn Model, coords: &Tensor, device: Device) -> Result<Tensor> {
    let _no_grad = tch::no_grad_guard();
    let mut chunks = Vec::new();
    for coords in coords.split(AT_ONCE, 0) {
        let inputs = Tensors::from([("coords".to_owned(), coords.to_device(device))]);
        let mut outputs = network.forward_named(&inputs, false)?;
        let values = outputs
            .remove("values")
            .ok_or_else(|| check::absent("values"))?;
        chunks.push(values.to_device(Device::Cpu).to_kind(Kind::Float));
    }
    Ok(Tensor::f_cat(&chunks, 0)?)
}

/// Values from 0 to 1 as bytes.
///
/// # Errors
/// [`Error::Torch`].
pub fn bytes_of(values: &Tensor) -> Result<Vec<u8>> {
    let bytes = (values.nan_to_num(0.0, None, None).clamp(0.0, 1.0) * 255.0).round();
    Ok(Vec::try_from(bytes.to_kind(Kind::Uint8).flatten(0, -1))?)
}

/// Most pixels of a preview's side.
const PREVIEW: usize = 512;

/// Writes a picture of what the network makes of a signal with two or three axes; of films the frame in the middle.
pub(super) fn write_picture(
    path: &Path,
    network: &dyn Model,
    signal: &Signal,
    device: Device,
) -> Result<()> {
    let (axes, convention) = (signal.axes(), signal.convention());
    let (frames, sides) = axes.split_at(axes.len().saturating_sub(2));
    let [height, width] = sides else {
        return Err(Error::config(
            "--preview",
            "is for pictures, films, surfaces and scenes",
        ));
    };
    let longest = (*height).max(*width);
    let scaled = |side: usize| (side * PREVIEW.min(longest) / longest).max(1);
    let line = |count: usize, of: usize| {
        let places: Vec<f32> = (0..count)
            .map(|i| coordinate((i as f64 + 0.5) / count as f64, of, convention.coordinates))
            .collect();
        Tensor::from_slice(&places)
    };
    let mut lines: Vec<Tensor> = frames
        .iter()
        .map(|of| Tensor::from_slice(&[coordinate(0.5, *of, convention.coordinates)]))
        .collect();
    lines.extend([line(scaled(*height), *height), line(scaled(*width), *width)]);
    let coords = Tensor::stack(&Tensor::meshgrid_indexing(&lines, "ij"), -1);
    let values = values_of(network, &coords.view([-1, axes.len() as i64]), device)?;
    let channels = values.size()[1] as usize;
    let pixels = bytes_of(&to_unit(&values, convention))?;
    write_png(
        path,
        &Image::new(scaled(*width), scaled(*height), channels, pixels)?,
    )
}

/// Writes a cut through the middle of a field of signed distances, x to the right and y up: inside blue, outside orange, with lines of equal distance.
pub(super) fn slice(
    path: &Path,
    network: &dyn Model,
    convention: Coordinates,
    device: Device,
) -> Result<()> {
    const SIDE: i64 = 384;
    let options = (Kind::Float, Device::Cpu);
    let x = Tensor::linspace(-1.0, 1.0, SIDE, options);
    let y = Tensor::linspace(1.0, -1.0, SIDE, options);
    let grid = Tensor::meshgrid_indexing(&[&y, &x], "ij");
    let points = Tensor::stack(&[&grid[1], &grid[0], &grid[0].zeros_like()], -1).view([-1, 3]);
    let values = values_of(network, &shape::coordinates(&points, convention), device)?;
    let inside = values.le(0.0).to_kind(Kind::Float);
    let waves = (values.abs() * 60.0).cos() * 0.1 + 0.8;
    let edge = (values.abs() * -40.0).exp();
    let blend = |inner: f64, outer: f64| {
        let colour = &inside * inner + (-&inside + 1.0) * outer;
        let shade = colour * &waves;
        &shade + (-&shade + 1.0) * &edge
    };
    let rgb = Tensor::cat(&[blend(0.4, 0.95), blend(0.65, 0.7), blend(0.95, 0.4)], 1);
    let side = SIDE as usize;
    write_png(path, &Image::new(side, side, 3, bytes_of(&rgb)?)?)
}

/// The metadata of a file of a field.
pub(super) fn metadata(pipeline: &Pipeline) -> Result<BTreeMap<String, String>> {
    let text =
        serde_json::to_string(pipeline).map_err(|e| Error::config("field", e.to_string()))?;
    Ok(BTreeMap::from([
        ("preset".to_owned(), pipeline.preset.clone()),
        ("field".to_owned(), text),
    ]))
}
