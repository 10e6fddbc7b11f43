//! What a run ran on, and how much memory it took.

use serde::{Deserialize, Serialize};

/// The surroundings of a run, kept beside it as `env.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Env {
    /// Version of this crate.
    pub crate_version: String,
    /// Version of libtorch.
    pub libtorch_version: String,
    /// Threads of one operation of libtorch.
    pub threads: i32,
    /// Device that the tensors live on.
    pub device: String,
    /// Name of the processor.
    pub cpu: String,
    /// Operating system and architecture.
    pub os: String,
    /// Commit of the source, where known.
    pub commit: Option<String>,
}

impl Env {
    /// Looks at this machine; `device` as the user names it.
    pub fn collect(device: &str, commit: Option<String>) -> Self {
        Self {
            crate_version: env!("CARGO_PKG_VERSION").to_owned(),
            // tch 0.24 links with this version and no other.
            libtorch_version: "2.11.0".to_owned(),
            threads: tch::get_num_threads(),
            device: device.to_owned(),
            cpu: cpu_name(),
            os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            commit,
        }
    }
}

/// A device as users name it.
pub fn device_name(device: tch::Device) -> String {
    match device {
        tch::Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    }
}

/// The processor's name, with the numbers that tell generations of one name apart, or `unknown` where the system does not tell.
pub fn cpu_name() -> String {
    let of = |key: &str| field("/proc/cpuinfo", key);
    let name = of("model name").unwrap_or_else(|| "unknown".to_owned());
    match (of("cpu family"), of("model")) {
        (Some(family), Some(model)) => format!("{name}, family {family} model {model}"),
        _ => name,
    }
}

/// Largest resident memory of this process so far in MB of 10^6 bytes, where the system tells (Linux).
pub fn peak_rss_mb() -> Option<f64> {
    let text = field("/proc/self/status", "VmHWM")?;
    let kib: f64 = text.strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}

fn field(path: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let (_, value) = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(k, _)| k.trim() == key)?;
    Some(value.trim().to_owned())
}

/// Whether libtorch's `message` says that memory, the main one or a GPU's, was not enough.
pub fn is_out_of_memory(message: &str) -> bool {
    [
        "out of memory",
        "not enough memory",
        "can't allocate memory",
    ]
    .iter()
    .any(|text| message.contains(text))
}

/// The seed of step `step` of a run: `splitmix64` over both, so that neighbours share nothing.
///
/// Give it to `tch::manual_seed` before each step: what the step draws then depends on the step alone, and a resumed
/// run needs no state of a generator.
pub const fn step_seed(seed: u64, step: u64) -> i64 {
    mix(mix(seed).wrapping_add(step)) as i64
}

const fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix64_gives_the_published_first_value() {
        // First output of the reference implementation for state 0 (Steele, Lea, Flood 2014).
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn steps_and_seeds_do_not_collide() {
        let seeds: std::collections::BTreeSet<i64> = (0..30)
            .flat_map(|seed| (0..1000).map(move |step| step_seed(seed, step)))
            .collect();
        assert_eq!(seeds.len(), 30_000);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn linux_tells_memory_and_processor() {
        assert!(peak_rss_mb().is_some_and(|mb| mb > 1.0));
    }
}
