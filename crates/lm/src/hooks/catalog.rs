//! The places of a model and their names, made once when the model is.

use std::collections::BTreeMap;

use densely_core::registry::nearest;
use densely_core::{Error, Result};

use crate::config::{Architecture, LmConfig};

/// A point of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    ResidPre,
    ResidMid,
    ResidPost,
    Ln1Scale,
    Ln1Normalized,
    Ln2Scale,
    Ln2Normalized,
    QInput,
    KInput,
    VInput,
    Q,
    K,
    V,
    RotQ,
    RotK,
    Scores,
    Pattern,
    Z,
    Result,
    AttnOut,
    MlpIn,
    MlpPre,
    MlpPreLinear,
    MlpPost,
    MlpOut,
}

/// All points of a block in the order of [`Point`], with their names after `blocks.{layer}.`.
const POINTS: [(Point, &str); 25] = [
    (Point::ResidPre, "hook_resid_pre"),
    (Point::ResidMid, "hook_resid_mid"),
    (Point::ResidPost, "hook_resid_post"),
    (Point::Ln1Scale, "ln1.hook_scale"),
    (Point::Ln1Normalized, "ln1.hook_normalized"),
    (Point::Ln2Scale, "ln2.hook_scale"),
    (Point::Ln2Normalized, "ln2.hook_normalized"),
    (Point::QInput, "hook_q_input"),
    (Point::KInput, "hook_k_input"),
    (Point::VInput, "hook_v_input"),
    (Point::Q, "attn.hook_q"),
    (Point::K, "attn.hook_k"),
    (Point::V, "attn.hook_v"),
    (Point::RotQ, "attn.hook_rot_q"),
    (Point::RotK, "attn.hook_rot_k"),
    (Point::Scores, "attn.hook_attn_scores"),
    (Point::Pattern, "attn.hook_pattern"),
    (Point::Z, "attn.hook_z"),
    (Point::Result, "attn.hook_result"),
    (Point::AttnOut, "hook_attn_out"),
    (Point::MlpIn, "hook_mlp_in"),
    (Point::MlpPre, "mlp.hook_pre"),
    (Point::MlpPreLinear, "mlp.hook_pre_linear"),
    (Point::MlpPost, "mlp.hook_post"),
    (Point::MlpOut, "hook_mlp_out"),
];

impl Point {
    /// The place of this point in a layer.
    pub(crate) const fn at(self, layer: usize) -> usize {
        layer * POINTS.len() + self as usize
    }

    /// Whether it is recorded only by its own name, being dear.
    const fn is_opt_in(self) -> bool {
        matches!(
            self,
            Self::Result | Self::QInput | Self::KInput | Self::VInput | Self::MlpIn
        )
    }

    const fn exists(self, config: &LmConfig) -> bool {
        match self {
            Self::ResidMid => !config.is_parallel(),
            Self::RotQ | Self::RotK => config.rotary.is_some(),
            Self::MlpPreLinear => config.gated(),
            _ => true,
        }
    }
}

/// A point outside the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Global {
    Embed,
    PosEmbed,
    FinalScale,
    FinalNormalized,
}

const GLOBALS: [(Global, &str); 4] = [
    (Global::Embed, "hook_embed"),
    (Global::PosEmbed, "hook_pos_embed"),
    (Global::FinalScale, "ln_final.hook_scale"),
    (Global::FinalNormalized, "ln_final.hook_normalized"),
];

impl Global {
    /// The place of this point in a model of `layers` layers.
    pub(crate) const fn at(self, layers: usize) -> usize {
        layers * POINTS.len() + self as usize
    }
}

/// The names of all places of one model.
#[derive(Debug)]
pub(crate) struct Catalog {
    /// By place; `None` where this model has no such point.
    names: Vec<Option<String>>,
    places: BTreeMap<String, usize>,
}

impl Catalog {
    pub(crate) fn new(config: &LmConfig) -> Self {
        let mut names = Vec::with_capacity(config.n_layers * POINTS.len() + GLOBALS.len());
        for layer in 0..config.n_layers {
            names.extend(POINTS.iter().map(|(point, name)| {
                point
                    .exists(config)
                    .then(|| format!("blocks.{layer}.{name}"))
            }));
        }
        let learned = matches!(config.architecture, Architecture::Gpt2 | Architecture::Opt);
        names.extend(GLOBALS.iter().map(|(point, name)| {
            (learned || *point != Global::PosEmbed).then(|| (*name).to_owned())
        }));
        let places = names
            .iter()
            .enumerate()
            .filter_map(|(place, name)| Some((name.clone()?, place)))
            .collect();
        Self { names, places }
    }

    /// Whether a pass through `layers` comes by a place; `starts` and `ends` say whether it has tokens at its beginning and the head at its end.
    pub(crate) fn reached(
        &self,
        place: usize,
        layers: std::ops::Range<usize>,
        (starts, ends): (bool, bool),
    ) -> bool {
        match place.checked_sub(self.len() - GLOBALS.len()) {
            None => layers.contains(&(place / POINTS.len())),
            Some(global) if global < Global::FinalScale as usize => starts,
            Some(_) => ends,
        }
    }

    /// Number of places, with those that this model lacks.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// All names, in the order in which a pass comes by their layers.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().flatten().map(String::as_str)
    }

    pub(crate) fn name(&self, place: usize) -> &str {
        self.names
            .get(place)
            .and_then(Option::as_deref)
            .unwrap_or_default()
    }

    /// # Errors
    /// [`Error::Config`] with the nearest names.
    pub(crate) fn place(&self, name: &str) -> Result<usize> {
        let place = self.places.get(name).copied();
        place.ok_or_else(|| self.unknown(name))
    }

    /// Places whose names fit a pattern.
    ///
    /// # Errors
    /// [`Error::Config`] when none does.
    pub(crate) fn matching(&self, pattern: &str) -> Result<Vec<usize>> {
        if !pattern.contains('*') {
            return Ok(vec![self.place(pattern)?]);
        }
        let blocks = self.len() - GLOBALS.len();
        let fits = |name: &str, place: usize| {
            let point = POINTS[place % POINTS.len()].0;
            let own = name.rsplit('.').next().unwrap_or(name);
            let asked = place >= blocks || !point.is_opt_in() || pattern.ends_with(own);
            asked && glob(pattern.as_bytes(), name.as_bytes())
        };
        let all = self.places.iter();
        let found: Vec<usize> = all
            .filter(|(name, place)| fits(name, **place))
            .map(|(_, place)| *place)
            .collect();
        if found.is_empty() {
            return Err(self.unknown(pattern));
        }
        Ok(found)
    }

    fn unknown(&self, name: &str) -> Error {
        let near = nearest(self.names(), name).join("`, `");
        Error::config(
            name,
            format!("this model has no such hook point; nearest: `{near}`"),
        )
    }
}

/// Whether `text` fits `pattern`, where `*` stands for any text.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    // Where the last `*` stood, and how much of the text it has taken: on a mismatch it takes one more.
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            p += 1;
            t += 1;
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            p = at + 1;
            t = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_points() {
        for (index, (point, _)) in POINTS.iter().enumerate() {
            assert_eq!(*point as usize, index);
        }
        for (index, (point, _)) in GLOBALS.iter().enumerate() {
            assert_eq!(*point as usize, index);
        }
    }

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, text, fits) in [
            ("*", "", true),
            ("*", "a.b", true),
            ("blocks.*.hook_z", "blocks.10.attn.hook_z", true),
            ("blocks.1.*", "blocks.11.hook_z", false),
            ("*a*b", "aab", true),
            ("*a*b", "aba", false),
            ("a**", "a", true),
            ("", "a", false),
        ] {
            let found = glob(pattern.as_bytes(), text.as_bytes());
            assert_eq!(found, fits, "{pattern} on {text}");
        }
    }
}
