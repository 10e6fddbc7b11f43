//! Where tensors live: `auto`, `cpu` or `cuda:N`.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// A device as a user names it. [`open`](Device::open) turns it into the one that tensors take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The first GPU where there is one that works, else the CPU; the choice is logged.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The GPU of this number, counted from 0.
    Cuda(usize),
}

impl Device {
    /// Finds the device, loading libtorch's CUDA half when it is needed.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when a GPU is asked for by number and cannot be had. `auto` never fails.
    pub fn open(self) -> Result<tch::Device> {
        match self {
            Self::Cpu => Ok(tch::Device::Cpu),
            Self::Cuda(index) => open_cuda(index).map_err(|reason| Error::Unsupported {
                what: format!("device `{self}`"),
                hint: format!("{reason}; use `--device cpu`, or install a CUDA libtorch with `cargo xtask setup --cuda`"),
            }),
            Self::Auto => Ok(match open_cuda(0) {
                Ok(device) => {
                    tracing::info!("device auto: cuda:0");
                    device
                }
                Err(reason) => {
                    tracing::info!("device auto: cpu ({reason})");
                    tch::Device::Cpu
                }
            }),
        }
    }
}

fn open_cuda(index: usize) -> std::result::Result<tch::Device, String> {
    densely_torch_ext::load_cuda().map_err(|message| {
        let reason = message
            .split(':')
            .next_back()
            .unwrap_or_default()
            .trim()
            .to_owned();
        format!("libtorch's CUDA library did not load ({reason})")
    })?;
    if !tch::Cuda::is_available() {
        return Err("no usable NVIDIA driver or GPU".to_owned());
    }
    let count = tch::Cuda::device_count().max(0) as usize;
    if index >= count {
        return Err(format!("this machine has {count} GPUs, numbered from 0"));
    }
    Ok(tch::Device::Cuda(index))
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |text: &str| text.parse().ok();
        match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            other => other.strip_prefix("cuda:").and_then(number).map(Self::Cuda),
        }
        .ok_or_else(|| {
            Error::config(
                "device",
                format!("must be `auto`, `cpu` or `cuda:N`, got `{text}`"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_nonsense_is_refused() {
        for name in ["auto", "cpu", "cuda:0", "cuda:7"] {
            assert_eq!(name.parse::<Device>().expect("a device").to_string(), name);
        }
        for name in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            let error = name
                .parse::<Device>()
                .expect_err("not a device")
                .to_string();
            assert!(error.ends_with(&format!("got `{name}`")), "{error}");
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_a_clear_error() {
        let error = Device::Cuda(4096)
            .open()
            .expect_err("no machine has so many")
            .to_string();
        assert!(
            error.starts_with("device `cuda:4096` is not available: "),
            "{error}"
        );
        assert!(error.contains("--device cpu"), "{error}");
    }

    #[test]
    fn auto_always_opens() {
        assert!(Device::Auto.open().is_ok());
    }
}
