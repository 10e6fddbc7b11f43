//! Smaller models for serving: only the members that are averaged are kept.

use std::path::Path;

use densely_core::{Error, Result, Tensors, fs, seeded, weights};
use tch::nn::VarStore;
use tch::{Device, Tensor};

use crate::fit::{Fitted, Pipeline};
use crate::models::ModelConfig;

/// Writes a run folder with the chosen members of the run in `from`; it predicts what the average of these members
/// predicts, and can be evaluated and served like any other.
///
/// `members` are places among those of the run, each once. What was shared stays; what was a member's own stays for
/// the chosen ones.
/// # Errors
/// [`Error::Config`] for members that are not there or twice, models without members, and a folder that exists;
/// [`Error::Io`] and [`Error::Corrupt`] of the run.
pub fn prune(from: &Path, members: &[i64], into: &Path) -> Result<()> {
    let fitted = Fitted::open(from, Device::Cpu)?;
    let Pipeline {
        preset,
        config,
        task,
        preprocessor,
    } = fitted.pipeline;
    let old = ModelConfig::of(&preset, &config)?;
    let k = old.members();
    if k < 2 {
        return Err(Error::config(
            "model",
            format!("`{preset}` has no members to leave out"),
        ));
    }
    for (at, member) in members.iter().enumerate() {
        if !(0..k).contains(member) || members[..at].contains(member) {
            let reason = format!(
                "must be different numbers from 0 to {}, got {members:?}",
                k - 1
            );
            return Err(Error::config("members", reason));
        }
    }
    if members.is_empty() {
        return Err(Error::config("members", "must hold at least one member"));
    }
    if into.exists() {
        let reason = format!("{} exists; name a new folder", into.display());
        return Err(Error::config("out", reason));
    }
    let mut small = config;
    if let Some(fields) = small.as_object_mut() {
        fields.insert("k".to_owned(), members.len().into());
    }
    // The small model knows the shape of everything; what differs in the first dimension is a member's own.
    let vs = VarStore::new(Device::Cpu);
    let small_config = ModelConfig::of(&preset, &small)?;
    seeded(0, || small_config.build(&vs.root()))?;
    let path = from.join("best").join("model.safetensors");
    let own = weights::read(&path)?.tensors;
    let all = members.len() as i64 == k;
    let chosen = Tensor::from_slice(members);
    let mut tensors = Tensors::new();
    for (name, shape) in vs
        .variables()
        .iter()
        .map(|(name, xs)| (name.clone(), xs.size()))
    {
        let xs = own
            .get(&name)
            .ok_or_else(|| Error::corrupt(&path, format!("it lacks `{name}`")))?;
        let size = xs.size();
        let cut = if size == shape {
            xs.shallow_clone()
        } else if !all && size.first() == Some(&k) && size[1..] == shape[1..] {
            xs.index_select(0, &chosen)
        } else {
            return Err(Error::corrupt(
                &path,
                format!("`{name}` has the shape {size:?}"),
            ));
        };
        tensors.insert(name, cut);
    }
    let pipeline = Pipeline {
        preset,
        config: small,
        task,
        preprocessor,
    };
    let text =
        serde_json::to_string(&pipeline).map_err(|e| Error::config("preprocess", e.to_string()))?;
    // Made beside its place and renamed, so that a half-written folder is never taken for a run.
    let half = fs::sibling(into, "tmp");
    let best = half.join("best");
    std::fs::create_dir_all(&best).map_err(Error::io(&best))?;
    let written = (|| {
        weights::save(
            &best.join("model.safetensors"),
            &tensors,
            &std::collections::BTreeMap::new(),
        )?;
        fs::write(&best.join("preprocess.json"), text.as_bytes())?;
        std::fs::rename(&half, into).map_err(Error::io(into))?;
        fs::sync_folder(into)
    })();
    if written.is_err() {
        // The first error is the one to report.
        let _ = std::fs::remove_dir_all(&half);
    }
    written
}
