//! The table of ratios: docs/src/benchmarks.json, and the page made of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use super::{COMPILED_F32, EAGER_F32};
use crate::cache;

/// An entry of `docs/src/benchmarks.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) workload: String,
    pub(super) model: String,
    pub(super) phase: String,
    pub(super) batch: u64,
    pub(super) dtype: String,
    pub(super) device: String,
    pub(super) threads: u32,
    pub(super) peer: String,
    /// Peer's time / our time, per round.
    pub(super) ratio: Ratio,
    /// Our time / the time of the matrix products alone, per round.
    pub(super) over_floor: Ratio,
    pub(super) ours_ms: f64,
    pub(super) peer_ms: f64,
    pub(super) floor_ms: f64,
    /// Fifth and ninety-fifth percentile of our single repetitions.
    pub(super) ours_percentiles_ms: [f64; 2],
    pub(super) peer_percentiles_ms: [f64; 2],
    pub(super) ours_peak_mb: Option<f64>,
    pub(super) peer_peak_mb: Option<f64>,
    /// SHA-256 of the predictions, the same in every round; none of a training step.
    #[serde(default)]
    pub(super) ours_checksum: Option<String>,
    #[serde(default)]
    pub(super) peer_checksum: Option<String>,
    pub(super) rounds: u32,
    pub(super) commit: String,
    pub(super) cpu: String,
}

impl Entry {
    /// Rows of another commit are replaced by those with the same key; those of another processor stay.
    pub(super) fn key(&self) -> (String, String, String, u32, String, u64, String, String) {
        (
            self.device.clone(),
            self.dtype.clone(),
            self.workload.clone(),
            self.threads,
            self.phase.clone(),
            self.batch,
            self.peer.clone(),
            self.cpu.clone(),
        )
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Ratio {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Ratio {
    /// Round by round.
    pub(super) fn of(above: &[f64], below: &[f64]) -> Result<Self> {
        let mut ratios: Vec<f64> = above.iter().zip(below).map(|(a, b)| a / b).collect();
        if ratios.iter().any(|ratio| !ratio.is_finite()) {
            bail!("a time of 0 was measured");
        }
        ratios.sort_by(f64::total_cmp);
        let nothing = || anyhow!("nothing was measured");
        Ok(Self {
            median: quantile(&ratios, 0.5).ok_or_else(nothing)?,
            min: *ratios.first().ok_or_else(nothing)?,
            max: *ratios.last().ok_or_else(nothing)?,
        })
    }
}

pub(super) fn sorted(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values
}

/// Of sorted values, linear between neighbours.
pub(super) fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let last = values.len().checked_sub(1)?;
    let place = q * last as f64;
    let (low, high) = (
        *values.get(place.floor() as usize)?,
        *values.get(place.ceil() as usize)?,
    );
    Some(low + (high - low) * place.fract())
}

/// Puts `entries` in the place of those with the same key and writes the page anew, so that a run that is stopped keeps
/// what it has measured.
pub(super) fn publish(docs: &Path, entries: Vec<Entry>) -> Result<()> {
    let path = docs.join("benchmarks.json");
    let known: Vec<Entry> = std::fs::read(&path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let all: BTreeMap<_, Entry> = known
        .into_iter()
        .chain(entries)
        .map(|entry| (entry.key(), entry))
        .collect();
    let all: Vec<Entry> = all.into_values().collect();
    cache::write(
        &path,
        format!("{}\n", serde_json::to_string_pretty(&all)?).as_bytes(),
    )?;
    cache::write(&docs.join("benchmarks.md"), page(&all).as_bytes())
}

/// Rows of the table: one per case, with all peers in it.
pub(super) fn rows(entries: &[Entry]) -> String {
    let mut text = String::new();
    let mut cases: Vec<&Entry> = Vec::new();
    for entry in entries {
        let same = |e: &&Entry| {
            e.key().4 == entry.key().4
                && (&e.workload, e.batch, e.threads)
                    == (&entry.workload, entry.batch, entry.threads)
        };
        if !cases.iter().any(same) {
            cases.push(entry);
        }
    }
    for case in cases {
        let of = |peer: &str| {
            entries.iter().find(|e| {
                (&e.workload, &e.phase, e.batch, e.threads, e.peer.as_str())
                    == (&case.workload, &case.phase, case.batch, case.threads, peer)
            })
        };
        let ratio = |peer: &str| of(peer).map_or_else(|| "–".to_owned(), |e| ratio_text(e.ratio));
        let in_f32 = if case.dtype == "f32" {
            String::new()
        } else {
            let faster = [EAGER_F32, COMPILED_F32]
                .into_iter()
                .filter_map(of)
                .min_by(|a, b| a.peer_ms.total_cmp(&b.peer_ms));
            faster.map_or_else(
                || " – |".to_owned(),
                |e| format!(" {} |", ratio_text(e.ratio)),
            )
        };
        let peak =
            |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |mb| format!("{mb:.0}"));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} |{in_f32} {} | {:.2} | {} / {} / {} | `{}` |",
            case.workload,
            case.phase,
            case.batch,
            case.threads,
            ratio("eager"),
            ratio("compiled"),
            ratio_text(case.over_floor),
            case.ours_ms,
            peak(case.ours_peak_mb),
            peak(of("eager").and_then(|e| e.peer_peak_mb)),
            peak(of("compiled").and_then(|e| e.peer_peak_mb)),
            case.commit,
        );
    }
    text
}

pub(super) fn ratio_text(ratio: Ratio) -> String {
    format!("{:.2} ({:.2}–{:.2})", ratio.median, ratio.min, ratio.max)
}

pub(super) fn page(entries: &[Entry]) -> String {
    let mut text = String::from(PREFACE);
    let mut groups: BTreeMap<(String, String, String), Vec<Entry>> = BTreeMap::new();
    for entry in entries {
        let key = (entry.device.clone(), entry.dtype.clone(), entry.cpu.clone());
        groups.entry(key).or_default().push(entry.clone());
    }
    for ((device, dtype, cpu), entries) in groups {
        let in_f32 = if dtype == "f32" {
            ["", ""]
        } else {
            [" faster of their f32 / ours |", " ---: |"]
        };
        let _ = write!(
            text,
            "\n## {dtype} on {device} ({cpu})\n\n| workload | phase | batch | threads | eager / ours | compiled / ours |{} ours / floor | ours, ms | peak MB: ours / eager / compiled | commit |\n| --- | --- | ---: | ---: | ---: | ---: |{} ---: | ---: | ---: | --- |\n{}",
            in_f32[0],
            in_f32[1],
            rows(&entries)
        );
    }
    text
}

const PREFACE: &str = "<!-- Generated by `cargo xtask bench --peers`. -->
# Benchmarks

Each row is one case measured on three sides in turn, in one run: Densely, PyTorch 2.11 eager, and `torch.compile`. *eager / ours* is
PyTorch's time divided by Densely's: above 1, Densely is faster. In bf16 both sides run under autocast, and *faster of their f32 / ours*
says what bf16 in Densely gains over the faster of PyTorch's two without it. *ours / floor* is Densely's time divided by the time that libtorch
takes for the matrix products alone (training: plus the optimiser's memory traffic at the speed of a large copy): near 1, there is
nothing left to gain but faster products. Medians over the rounds, with the smallest and largest round. Before they are timed, the
sides must agree in predictions, loss and norm of the gradient; in inference each side must give the same bits in every round (their
SHA-256, the percentiles of single repetitions and the threads are in benchmarks.json). Times are of one machine and say little by themselves.
[Performance](guide/performance.md) explains what is behind them.

| workloads | sizes | beside |
| --- | --- | --- |
| `tabm-…`, `mlp-ple-…` | the package's defaults (k = 32, 3 blocks of 512, dropout 0.1; the MLP: 2 blocks of 512 on piecewise-linear embeddings with 48 bins) with 8 or 100 numerical features; `small`: 2 blocks of 128 | package `tabm` |
| `tsmixer` | ETTh1: 512 steps of 7 series, 96 ahead, 2 blocks, hidden 64, dropout 0.9; `etth1`: 6 blocks, hidden 512 | package `neuralforecast` |
| `patchtsmixer` | ETTh1 as the authors' notebook: 64 patches of 8, d 48, 3 layers, expansion 3, dropout 0.5 | package `transformers` |
| `finalmlp-…` | `frappe`: 10 fields, 5,399 ids; `criteo`: 13 numbers and 26 fields of 2.1 million ids; dimension 10, the published settings. `…-lazy` touches the rows of a batch alone, which the package cannot | package `fuxictr`, its dense training |
| `din-amazon` | AmazonElectronics: histories of 100 steps, three quarters full, dimension 64, attention 512 and 256 | package `fuxictr` |
| `din-candidates` | the same model: 1,000 items for one user, ours at once, the package one by one | package `fuxictr` |
| `poolformer_s12`, `…@features` | 224 × 224; logits with cross entropy and AdamW, or the maps of the four stages | `transformers`; `timm`, its maps normed |
| `strip_mlp_tstar` | 224 × 224, cross entropy and AdamW | the authors' code (a checkout named by `STRIP_MLP`) |
| `maxim_s2` | 256 × 256 | the released JAX code by hand in PyTorch |
| `siren`, `cam-image` | 65,536 points, mean squared error and Adam | the authors' equations in PyTorch |
| `hashgrid` | 65,536 points in space, tables of 12.2 million values, mean squared error and Adam | the same rules by indexed tables in PyTorch |
| `gpt2`, `smollm2` | random weights, texts of 128 tokens, logits of all positions | package `transformers` |
| `gpt2-cache`, `…-some` | the same, keeping every hook point, or two of each layer; cannot be compiled, so both columns are eager | package `transformer_lens` |
| `trace-smollm2` | causal tracing of blocks: 9 tokens × 30 layers, 10 corrupted runs | the released algorithm with hooks on `transformers`, eager in both columns; 9 cells are timed and count for 270 |
| `sae-relu`, `sae-topk` | a training step of an autoencoder, 576 values and 9,216 features: L1 with one feature in a hundred active, or the 32 largest | package `sae_lens`, eager in both columns |
| `skip-transcoder` | a training step of a transcoder with a linear way past its 32 largest features | package `eai-sparsify`, eager in both columns |
| `layers-smollm2`, `…-kept` | the first nine layers on texts of 128 tokens, and what enters and leaves the last one's MLP kept | `transformers`, with hooks |
| `render-packed` | 8,192 rays of 0 to 64 samples, colours and their gradients | `nerfacc` on dense rays |

```sh
cargo xtask bench --peers                     # all of it; hours on two cores
cargo xtask bench --peers tabm-8/train        # some of it: rows are replaced, others stay
cargo xtask bench --peers tabm-8 --dtype bf16
cargo xtask bench --save before               # criterion, ours alone ...
cargo xtask bench --against before            # ... and compared after a change
```
";

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(peer: &str, ms: f64) -> Entry {
        let ratio = Ratio {
            median: ms / 10.0,
            min: 1.0,
            max: 3.0,
        };
        Entry {
            workload: "tabm-8".to_owned(),
            model: "tabm".to_owned(),
            phase: "train".to_owned(),
            batch: 256,
            dtype: "f32".to_owned(),
            device: "cpu".to_owned(),
            threads: 1,
            peer: peer.to_owned(),
            ratio,
            over_floor: ratio,
            ours_ms: 10.0,
            peer_ms: ms,
            floor_ms: 9.0,
            ours_percentiles_ms: [9.0, 11.0],
            peer_percentiles_ms: [9.0, 11.0],
            ours_peak_mb: Some(100.0),
            peer_peak_mb: None,
            ours_checksum: None,
            peer_checksum: None,
            rounds: 7,
            commit: "abc".to_owned(),
            cpu: "a CPU".to_owned(),
        }
    }

    #[test]
    fn ratios_are_taken_round_by_round() -> Result<()> {
        let ratio = Ratio::of(&[10.0, 20.0, 60.0], &[10.0, 10.0, 20.0])?;
        assert_eq!((ratio.median, ratio.min, ratio.max), (2.0, 1.0, 3.0));
        assert!(Ratio::of(&[], &[]).is_err());
        assert!(Ratio::of(&[1.0], &[0.0]).is_err());
        Ok(())
    }

    #[test]
    fn a_page_has_one_row_per_case_with_both_peers() {
        let text = page(&[entry("compiled", 30.0), entry("eager", 20.0)]);
        let rows: Vec<&str> = text
            .lines()
            .filter(|line| line.contains("| 256 |"))
            .collect();
        assert_eq!(
            rows,
            [
                "| tabm-8 | train | 256 | 1 | 2.00 (1.00–3.00) | 3.00 (1.00–3.00) | 3.00 (1.00–3.00) | 10.00 | 100 / – / – | `abc` |"
            ]
        );
    }

    #[test]
    fn a_new_row_takes_the_place_of_the_old_one_and_others_stay() -> Result<()> {
        let folder = tempfile::tempdir()?;
        publish(
            folder.path(),
            vec![entry("eager", 20.0), entry("compiled", 30.0)],
        )?;
        publish(folder.path(), vec![entry("eager", 25.0)])?;
        let text = std::fs::read_to_string(folder.path().join("benchmarks.json"))?;
        let entries: Vec<Entry> = serde_json::from_str(&text)?;
        let found: Vec<_> = entries
            .iter()
            .map(|e| (e.peer.as_str(), e.peer_ms))
            .collect();
        assert_eq!(found, [("compiled", 30.0), ("eager", 25.0)]);
        Ok(())
    }

    #[test]
    fn bf16_is_also_compared_with_the_faster_of_the_peers_in_f32() {
        let bf16 = |peer: &str, ms: f64| Entry {
            dtype: "bf16".to_owned(),
            ..entry(peer, ms)
        };
        let text = page(&[
            bf16("eager", 20.0),
            bf16("compiled", 30.0),
            bf16(EAGER_F32, 60.0),
            bf16(COMPILED_F32, 50.0),
        ]);
        assert!(
            text.contains("| 3.00 (1.00–3.00) | 5.00 (1.00–3.00) |"),
            "{text}"
        );
        assert!(text.contains("faster of their f32 / ours"));
    }
}
