//! Sounds from WAV files.

use std::fs::File;
use std::io::{BufReader, Cursor, Read};
use std::path::Path;

use densely_core::{Error, Result};
use hound::{SampleFormat, WavReader, WavSpec, WavWriter};
use tch::{Kind, Tensor};

use super::{Convention, Samples, Signal};

/// A sound.
#[derive(Debug, Clone)]
pub struct Sound {
    /// One axis, time; the file's channels. Its own range is -1 to 1: whole numbers of b bits are divided by 2^(b - 1).
    pub signal: Signal,
    /// Samples a second.
    pub sample_rate: u32,
}

/// Reads a WAV file of any number of channels, with whole numbers of 8, 16, 24 or 32 bits or floats of 32.
///
/// # Errors
/// [`Error::Io`] when it cannot be read, and those of [`decode_wav`].
pub fn read_wav(path: &Path, convention: Convention) -> Result<Sound> {
    let file = File::open(path).map_err(Error::io(path))?;
    decode_wav(BufReader::new(file), path, convention)
}

/// Reads a WAV file from `source`; `name` stands in errors.
///
/// # Errors
/// [`Error::Corrupt`] when it is damaged or no WAV file; [`Error::Data`] for kinds of samples that are not read, no sample, and samples that are no numbers.
pub fn decode_wav(source: impl Read, name: &Path, convention: Convention) -> Result<Sound> {
    let wrong = |error| sentence(&error, name);
    let mut reader = WavReader::new(source).map_err(wrong)?;
    let spec = reader.spec();
    // What the header says of the length is not trusted with memory: the samples that are there are collected.
    let mut samples = Vec::new();
    match spec.sample_format {
        SampleFormat::Int => {
            let scale = 2f32.powi(1 - i32::from(spec.bits_per_sample));
            for sample in reader.samples::<i32>() {
                samples.push(sample.map_err(wrong)? as f32 * scale);
            }
        }
        SampleFormat::Float => {
            for sample in reader.samples::<f32>() {
                samples.push(sample.map_err(wrong)?);
            }
        }
    }
    if samples.is_empty() {
        return Err(Error::data(name, "holds no sample"));
    }
    if spec.sample_rate == 0 {
        return Err(Error::data(name, "says that it has 0 samples a second"));
    }
    let channels = usize::from(spec.channels);
    if let Some(at) = samples.iter().position(|sample| !sample.is_finite()) {
        let (sample, row) = (samples[at], at / channels);
        let reason = format!("sample {row} is {sample}, not a finite number");
        return Err(Error::data(name, reason));
    }
    // The format's own range; floats may leave it, and then nothing says what full scale is.
    if let Some(at) = samples.iter().position(|sample| sample.abs() > 1.0) {
        let (sample, row) = (samples[at], at / channels);
        let reason = format!(
            "sample {row} is {sample}, and samples lie in -1 to 1; reduce the volume of the file"
        );
        return Err(Error::data(name, reason));
    }
    Ok(Sound {
        signal: Signal {
            axes: vec![samples.len() / channels],
            channels,
            samples: Samples::Float(samples),
            convention,
        },
        sample_rate: spec.sample_rate,
    })
}

/// Writes samples `[samples, channels]` in -1 to 1 as a WAV file of 32-bit floats, whole or not at all.
///
/// # Errors
/// [`Error::Shape`] for another shape; [`Error::Config`] for a rate of 0 and more channels than the format has; [`Error::Io`].
pub fn write_wav(path: &Path, samples: &Tensor, sample_rate: u32) -> Result<()> {
    densely_core::check::shape("samples", samples, &[None, None])?;
    densely_core::check::positive("sample_rate", i64::from(sample_rate))?;
    let channels = u16::try_from(samples.size()[1]).ok().filter(|n| *n > 0);
    let channels = channels.ok_or_else(|| Error::config("channels", "must lie in 1 to 65535"))?;
    let spec = WavSpec {
        channels,
        sample_rate,
        bits_per_sample: 32,
        sample_format: SampleFormat::Float,
    };
    let wrong = |error: hound::Error| sentence(&error, path);
    let values: Vec<f32> = Vec::try_from(samples.to_kind(Kind::Float).flatten(0, -1))?;
    let mut bytes = Cursor::new(Vec::new());
    let mut writer = WavWriter::new(&mut bytes, spec).map_err(wrong)?;
    for value in values {
        writer.write_sample(value).map_err(wrong)?;
    }
    writer.finalize().map_err(wrong)?;
    densely_core::fs::write(path, bytes.get_ref())
}

fn sentence(error: &hound::Error, name: &Path) -> Error {
    match error {
        hound::Error::Unsupported | hound::Error::TooWide | hound::Error::InvalidSampleFormat => {
            let reason = "is a kind of WAV file that is not read; save it as PCM of 8, 16, 24 or 32 bits, or as 32-bit float";
            Error::data(name, reason)
        }
        // The decoder reports a short read as an error of its own kind, without the system's number.
        hound::Error::IoError(e) if e.raw_os_error().is_none() => {
            Error::corrupt(name, "it ends too early; copy or download it again")
        }
        hound::Error::IoError(e) => Error::Io {
            path: name.to_owned(),
            source: e.kind().into(),
        },
        other => Error::corrupt(name, format!("{other}; expected a WAV file")),
    }
}
