//! What an edit does: the options, with everything by the model filled in.

use std::str::FromStr;

use clap::ValueEnum;
use densely_core::{Error, Result, check};
use densely_interp::edit::{
    Defaults, Edit, FinetuneOptions, KeyMode, MemitOptions, Prefixes, Request, RomeOptions,
    StarOptions, TargetLoss, finetune, memit, rome,
};
use densely_lm::Opened;
use serde_json::{Value, json};

use super::{EditArguments, moments};
use crate::Common;
use crate::commands::interp::{Key, memit_alone};

/// How a fact is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Way {
    /// One fact into one layer, by a matrix of rank one.
    Rome,
    /// Facts into several layers at once.
    Memit,
    /// Training of the matrix with entries held near to what they were.
    Ft,
}

impl Way {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Rome => "rome",
            Self::Memit => "memit",
            Self::Ft => "ft",
        }
    }

    /// As in the edit that it makes.
    pub(super) const fn method(self) -> &'static str {
        match self {
            Self::Ft => "finetune",
            other => other.name(),
        }
    }
}

/// How the tokens of a target enter the loss of finetuning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Loss {
    /// Each token after those before it, averaged.
    SequenceMean,
    /// The same, summed.
    SequenceSum,
    /// All tokens from the one distribution behind the prompt, as in the released code of ROME.
    SinglePosition,
}

impl Loss {
    const fn target(self) -> TargetLoss {
        match self {
            Self::SequenceMean => TargetLoss::SequenceMean,
            Self::SequenceSum => TargetLoss::SequenceSum,
            Self::SinglePosition => TargetLoss::SinglePosition,
        }
    }
}

/// Most that is changed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Limit {
    /// As much as it comes to.
    None,
    /// So much.
    At(f64),
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text == "none" {
            return Ok(Self::None);
        }
        let number = text.parse::<f64>().map(Self::At);
        number.map_err(|_| format!("must be a number or `none`, got `{text}`"))
    }
}

/// What is done, with everything by the model filled in.
pub(super) struct Plan {
    pub(super) way: Way,
    pub(super) layers: Vec<usize>,
    key: KeyMode,
    loss: TargetLoss,
    clamp: Option<f64>,
    steps: usize,
    lambda: f64,
    seed: u64,
    /// Where the settings come from.
    pub(super) said: String,
    /// What the second moments are, in words; `None` where none are used, and until they are there.
    pub(super) moments: Option<String>,
}

impl EditArguments {
    /// Fails where MEMIT would change next to nothing.
    pub(super) fn check_memit(&self) -> Result<()> {
        if self.method == Way::Memit && self.lambda.is_none() && self.moments.are_identity() {
            return Err(memit_alone("--method", ""));
        }
        Ok(())
    }

    pub(super) fn plan(&self, opened: &Opened, common: &Common) -> Result<Plan> {
        let defaults = Defaults::of(opened.model.config());
        let (layers, clamp, steps) = match self.method {
            Way::Rome => (vec![defaults.rome_layer], defaults.rome_clamp, 20),
            Way::Memit => (defaults.memit_layers, 0.75, defaults.memit_steps),
            Way::Ft => (vec![defaults.finetune_layer], defaults.finetune_clamp, 25),
        };
        let said = if self.layers.is_empty() {
            defaults.said
        } else {
            "as asked for".to_owned()
        };
        let layers = if self.layers.is_empty() {
            layers
        } else {
            let mut layers = self.layers.clone();
            layers.sort_unstable();
            layers.dedup();
            layers
        };
        if self.method == Way::Rome && layers.len() != 1 {
            let reason = format!("ROME changes one layer, got {layers:?}");
            return Err(Error::config("--layer", reason));
        }
        if let Some(layer) = layers
            .iter()
            .find(|l| **l >= opened.model.config().n_layers)
        {
            let count = opened.model.config().n_layers;
            let reason = format!("must be below {count}, the model's layers, got {layer}");
            return Err(Error::config("--layer", reason));
        }
        let clamp = match self.clamp {
            None => Some(clamp),
            Some(Limit::At(most)) => Some(most),
            Some(Limit::None) if self.method == Way::Ft => None,
            Some(Limit::None) => {
                let reason = "`none` is of finetuning: the search of ROME and MEMIT takes a limit";
                return Err(Error::config("--clamp", reason));
            }
        };
        // Before anything is measured.
        if let Some(most) = clamp {
            check::above_zero("--clamp", most)?;
        }
        let steps = self.steps.unwrap_or(steps);
        check::positive("--steps", steps as i64)?;
        let lambda = self.lambda.unwrap_or(defaults.memit_lambda);
        if self.method == Way::Memit {
            check::above_zero("--lambda", lambda)?;
        }
        Ok(Plan {
            way: self.method,
            layers,
            key: self.key.map(Key::mode).unwrap_or_default(),
            loss: self.loss.map(Loss::target).unwrap_or_default(),
            clamp,
            steps,
            lambda,
            seed: common.seed.unwrap_or(0),
            said,
            moments: None,
        })
    }
}

impl Plan {
    /// Layers whose second moments are needed.
    pub(super) fn moment_layers(&self) -> &[usize] {
        match self.way {
            Way::Ft => &[],
            Way::Rome | Way::Memit => &self.layers,
        }
    }

    /// Keeps what the second moments are, where the method takes them.
    pub(super) fn know(&mut self, moments: &moments::Source) {
        self.moments = (self.way != Way::Ft).then(|| moments.said.clone());
    }

    /// The settings of the method, in a line.
    pub(super) fn described(&self) -> String {
        let own = match self.way {
            Way::Rome => format!("ROME's key {}", self.key.name()),
            Way::Memit => format!("lambda {}", self.lambda),
            Way::Ft => format!("loss {}", self.loss.name()),
        };
        let clamp = self
            .clamp
            .map_or_else(|| "none".to_owned(), |clamp| clamp.to_string());
        format!("{own}, clamp {clamp}, at most {} steps", self.steps)
    }

    /// Puts the settings into what is printed as JSON; `null` is what the method does not have.
    pub(super) fn add_to(&self, whole: &mut Value) {
        let own = |way: Way, value: Value| if self.way == way { value } else { Value::Null };
        for (name, value) in [
            ("layers", json!(self.layers)),
            ("key", own(Way::Rome, json!(self.key))),
            ("lambda", own(Way::Memit, json!(self.lambda))),
            ("loss", own(Way::Ft, json!(self.loss))),
            ("clamp", json!(self.clamp)),
            ("steps", json!(self.steps)),
            ("moments", json!(self.moments)),
        ] {
            whole[name] = value;
        }
    }

    pub(super) fn prefixes(&self, opened: &Opened) -> Result<Prefixes> {
        match self.way {
            Way::Rome => Prefixes::rome(&opened.model, &opened.tokenizer, self.seed),
            Way::Memit => Prefixes::memit(&opened.model, &opened.tokenizer, self.seed),
            Way::Ft => Ok(Prefixes::none()),
        }
    }

    /// A request that fits the model.
    pub(super) fn request(
        &self,
        opened: &Opened,
        template: &str,
        (subject, target): (&str, &str),
        prefixes: &Prefixes,
    ) -> Result<Request> {
        let mut request = Request::new(&opened.tokenizer, template, subject, target, prefixes)?;
        if self.way == Way::Ft {
            // It has no such part of the loss.
            request.kl = None;
        }
        request.check_length(&opened.model)?;
        Ok(request)
    }

    /// The change for some requests, and the losses of the last of them. ROME takes one request.
    pub(super) fn make(
        &self,
        opened: &Opened,
        requests: &[Request],
        moments: &mut moments::Source,
    ) -> Result<(Edit, Vec<f64>)> {
        let model = &opened.model;
        let usual = StarOptions::default();
        let star = StarOptions {
            clamp: self.clamp.unwrap_or(usual.clamp),
            steps: self.steps,
            ..usual
        };
        match (self.way, requests, self.layers.as_slice()) {
            (Way::Rome, [request], [layer]) => {
                let options = RomeOptions {
                    layer: *layer,
                    key: self.key,
                    star,
                };
                let held = moments.get(model, *layer)?;
                let made = rome(model, request, &held, &options)?;
                Ok((made.edit, made.losses))
            }
            (Way::Rome, ..) => Err(Error::config("--method", "ROME writes one fact at a time")),
            (Way::Memit, ..) => {
                let options = MemitOptions {
                    layers: self.layers.clone(),
                    lambda: self.lambda,
                    star,
                };
                let mut held = |layer: usize| moments.get(model, layer);
                let mut made = memit(model, requests, &mut held, &options)?;
                Ok((made.edit, made.losses.pop().unwrap_or_default()))
            }
            (Way::Ft, ..) => {
                let options = FinetuneOptions {
                    steps: self.steps,
                    loss: self.loss,
                    ..FinetuneOptions::new(self.layers.clone(), self.clamp)
                };
                let made = finetune(model, requests, &options)?;
                Ok((made.edit, made.losses))
            }
        }
    }
}
