//! Parameters by depth: heads, bodies, and learning rates that fall towards the input.

use densely_core::{Error, Result, weights};
use densely_train::optim::GroupRule;
use tch::nn::VarStore;

/// What the names of parameters behind the last block begin with.
pub(crate) const HEADS: [&str; 1] = ["head."];

/// Whether a parameter belongs to the classifier.
pub(crate) fn is_head(name: &str) -> bool {
    HEADS.iter().any(|head| name.starts_with(head))
}

/// Takes all but the head out of training.
///
/// # Errors
/// [`Error::Config`] when there is no head.
pub(crate) fn freeze_body(vs: &VarStore) -> Result<()> {
    let mut found = false;
    for (name, xs) in weights::named(vs) {
        if is_head(&name) {
            found = true;
        } else {
            let _ = xs.set_requires_grad(false);
        }
    }
    if found {
        return Ok(());
    }
    Err(Error::config(
        "model.freeze_body",
        "the model has no head to train",
    ))
}

/// The block of a parameter, in the order in which a picture passes them: stem, blocks by their numbers, the rest behind.
fn place(name: &str) -> (u8, Vec<u64>) {
    let numbers: Vec<u64> = name
        .split(['.', '_'])
        .filter_map(|part| {
            part.trim_start_matches(|c: char| c.is_ascii_alphabetic())
                .parse()
                .ok()
        })
        .collect();
    if name.starts_with("patch_embed") || name.starts_with("stem") {
        return (0, Vec::new());
    }
    let blocks = ["network.", "stages.", "blocks", "merging", "conv_s"];
    if !blocks.iter().any(|block| name.starts_with(block)) {
        return (2, Vec::new());
    }
    // A step between stages belongs to the first block of the one behind it.
    let stage = numbers.first().copied().unwrap_or(0);
    if name.starts_with("network.") {
        let block = if stage % 2 == 0 {
            numbers.get(1).copied().unwrap_or(0)
        } else {
            0
        };
        return (1, vec![stage.div_ceil(2), block]);
    }
    if name.starts_with("stages.") {
        let block = if name.contains(".blocks.") {
            numbers.get(1).copied().unwrap_or(0)
        } else {
            0
        };
        return (1, vec![stage, block]);
    }
    if name.starts_with("blocks") {
        return (1, vec![stage, numbers.get(1).copied().unwrap_or(0)]);
    }
    (1, vec![stage + 1, 0])
}

/// Of each trained parameter its name, the factor on its learning rate, and whether it decays: all of one dimension do not, and each block learns
/// `layer_decay` times as fast as the one behind it.
pub(crate) fn rules(vs: &VarStore, layer_decay: f64) -> Vec<(String, f64, bool)> {
    let named = weights::named(vs);
    let mut places: Vec<_> = named.keys().map(|name| place(name)).collect();
    places.sort();
    places.dedup();
    named
        .iter()
        .filter(|(_, xs)| xs.requires_grad())
        .map(|(name, xs)| {
            let depth = places.binary_search(&place(name)).unwrap_or(places.len());
            let above = places.len().saturating_sub(depth + 1);
            (name.clone(), layer_decay.powi(above as i32), xs.dim() > 1)
        })
        .collect()
}

/// The same for an optimiser.
pub(crate) fn group_rules(rules: &[(String, f64, bool)]) -> Vec<GroupRule> {
    let mut groups: Vec<(f64, bool, Vec<String>)> = Vec::new();
    for (name, scale, decays) in rules {
        match groups
            .iter_mut()
            .find(|(s, d, _)| s.total_cmp(scale).is_eq() && d == decays)
        {
            Some((.., names)) => names.push(name.clone()),
            None => groups.push((*scale, *decays, vec![name.clone()])),
        }
    }
    groups
        .into_iter()
        .map(|(scale, decays, names)| {
            let belongs = move |name: &str, _: &tch::Tensor| names.iter().any(|own| own == name);
            GroupRule::new(belongs, scale, (!decays).then_some(0.0))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_stand_in_the_order_of_the_network() {
        let orders: [&[&str]; 3] = [
            &[
                "patch_embed.proj.weight",
                "network.0.0.norm1.weight",
                "network.0.1.mlp.fc1.weight",
                "network.1.proj.weight",
                "network.2.1.norm1.bias",
                "network.6.0.norm1.bias",
                "head.weight",
            ],
            &[
                "stem.conv.weight",
                "stages.0.blocks.0.norm1.weight",
                "stages.1.downsample.conv.weight",
                "stages.1.blocks.11.norm1.weight",
                "head.fc.weight",
            ],
            &[
                "patch_embed.proj.weight",
                "blocks1.0.a",
                "merging1.weight",
                "blocks2.1.a",
                "blocks3.0.a",
                "head.weight",
            ],
        ];
        for names in orders {
            let places: Vec<_> = names.iter().map(|name| place(name)).collect();
            assert!(places.is_sorted(), "{places:?}");
        }
        assert_eq!(
            place("network.1.proj.weight"),
            place("network.2.0.norm1.weight")
        );
        assert_eq!(
            place("stages.1.downsample.conv.weight"),
            place("stages.1.blocks.0.mlp.fc1.weight")
        );
        assert_eq!(place("merging1.weight"), place("blocks2.0.a"));
    }
}
