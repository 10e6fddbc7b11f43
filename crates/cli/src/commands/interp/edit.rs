//! `densely interp edit`.

mod many;
pub(super) mod moments;

use std::path::PathBuf;

use clap::ValueEnum;
use densely_core::tch::{self, Kind, Tensor};
use densely_core::{Error, Result};
use densely_interp::edit::score::{Questions, RecordScores, Scores, weigh};
use densely_interp::edit::{
    Defaults, Edit, EditHandle, FinetuneOptions, KeyMode, MemitOptions, Prefixes, Request,
    RomeOptions, StarOptions, finetune, memit, rome,
};
use densely_lm::{Opened, Run, Sampling, generate};
use serde_json::{Value, json};

use crate::Common;
use crate::commands::lm::Source;
use moments::MomentsArguments;

/// How a fact is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// One fact into one layer, by a matrix of rank one.
    Rome,
    /// Facts into several layers at once.
    Memit,
    /// Training of the matrix with entries held near to what they were.
    Ft,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Rome => "rome",
            Self::Memit => "memit",
            Self::Ft => "ft",
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples: densely interp edit gpt2-medium --prompt \"The Eiffel Tower is in the city of\" --subject \"Eiffel Tower\" --target Rome --paraphrase \"To see the Eiffel Tower, one travels to\" --neighbour \"The Louvre is in the city of\" --true Paris\n\
                  densely interp edit gpt2-medium --facts counterfact.json --limit 20 --moments-text articles.txt\n\
                  The model's folder is not changed: --save writes the change as a file, and --apply tries one out."
)]
pub(crate) struct EditArguments {
    #[command(flatten)]
    source: Source,
    /// Text of the prompt, without the answer.
    #[arg(
        long,
        value_name = "TEXT",
        required_unless_present = "facts",
        conflicts_with = "facts"
    )]
    prompt: Option<String>,
    /// Its subject, as it stands there.
    #[arg(
        long,
        value_name = "TEXT",
        requires = "prompt",
        required_unless_present_any = ["facts", "apply"]
    )]
    subject: Option<String>,
    /// What the model shall answer.
    #[arg(
        long,
        value_name = "TEXT",
        requires = "prompt",
        required_unless_present_any = ["facts", "apply"]
    )]
    target: Option<String>,
    /// The answer so far, to compare with; the model's likeliest token when left out.
    #[arg(long = "true", value_name = "TEXT", requires = "target")]
    truth: Option<String>,
    /// The same question in other words; may be given again.
    #[arg(long, value_name = "TEXT", requires = "prompt")]
    paraphrase: Vec<String>,
    /// Another question, whose answer should stay; may be given again.
    #[arg(long, value_name = "TEXT", requires = "prompt")]
    neighbour: Vec<String>,
    /// A text to write on before and after the edit; may be given again.
    #[arg(long, value_name = "TEXT", requires = "prompt")]
    generate: Vec<String>,
    /// CounterFact's records: ROME and finetuning make each edit alone and take it back, MEMIT makes all at once.
    #[arg(long, value_name = "FILE")]
    facts: Option<PathBuf>,
    /// The first so many of them.
    #[arg(long, value_name = "N", default_value_t = 20, requires = "facts")]
    limit: usize,
    /// How the fact is written.
    #[arg(long, value_enum, default_value = "rome")]
    method: Way,
    /// Layer; of MEMIT several, as in 3,4,5. By the model when left out.
    #[arg(long = "layer", value_name = "N", value_delimiter = ',')]
    layers: Vec<usize>,
    #[command(flatten)]
    moments: MomentsArguments,
    /// Which key ROME writes for: the mean over prefixes (when left out), or that of the prompt alone as in the released code.
    #[arg(long, value_parser = ["averaged", "reference"])]
    key: Option<String>,
    /// Most that is added, in norms of the value as it was; of finetuning, most that an entry changes.
    #[arg(long)]
    clamp: Option<f64>,
    /// Evaluations of the loss at most.
    #[arg(long)]
    steps: Option<usize>,
    /// Weight of the second moments in MEMIT.
    #[arg(long)]
    lambda: Option<f64>,
    /// Write the change to this file.
    #[arg(long, value_name = "FILE", conflicts_with = "facts")]
    save: Option<PathBuf>,
    /// Try out a change that was saved, instead of making one.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = [
            "facts", "save", "subject", "target", "truth", "method", "layers", "steps", "clamp", "lambda", "key", "moments", "moments_text"
        ]
    )]
    apply: Option<PathBuf>,
}

/// What is done, with everything by the model filled in.
struct Plan {
    way: Way,
    layers: Vec<usize>,
    key: KeyMode,
    clamp: f64,
    steps: usize,
    lambda: f64,
    seed: u64,
    /// Where the settings come from.
    said: String,
}

impl EditArguments {
    /// Says which options change nothing.
    fn warn(&self, common: &Common) {
        let drawn = common.seed.map(|_| "--seed");
        if self.apply.is_some() {
            super::without_effect("--apply", drawn);
            return;
        }
        let of_memit = self.lambda.map(|_| "--lambda");
        let of_rome = self.key.as_ref().map(|_| "--key");
        let of_both = self.moments.given().into_iter().chain(drawn);
        let given: Vec<&str> = match self.method {
            Way::Rome => of_memit.into_iter().collect(),
            Way::Memit => of_rome.into_iter().collect(),
            Way::Ft => of_memit.into_iter().chain(of_rome).chain(of_both).collect(),
        };
        super::without_effect(&format!("--method {}", self.method.name()), given);
    }

    fn plan(&self, opened: &Opened, common: &Common) -> Result<Plan> {
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
        Ok(Plan {
            way: self.method,
            layers,
            key: match self.key.as_deref() {
                Some("reference") => KeyMode::Reference,
                _ => KeyMode::Averaged,
            },
            clamp: self.clamp.unwrap_or(clamp),
            steps: self.steps.unwrap_or(steps),
            lambda: self.lambda.unwrap_or(defaults.memit_lambda),
            seed: common.seed.unwrap_or(0),
            said,
        })
    }
}

impl Plan {
    /// Layers whose second moments are needed.
    fn moment_layers(&self) -> &[usize] {
        match self.way {
            Way::Ft => &[],
            Way::Rome | Way::Memit => &self.layers,
        }
    }

    fn prefixes(&self, opened: &Opened) -> Result<Prefixes> {
        match self.way {
            Way::Rome => Prefixes::rome(&opened.model, &opened.tokenizer, self.seed),
            Way::Memit => Prefixes::memit(&opened.model, &opened.tokenizer, self.seed),
            Way::Ft => Ok(Prefixes::none()),
        }
    }

    /// The change for some requests, and the losses of the last of them. ROME takes one request.
    fn make(
        &self,
        opened: &Opened,
        requests: &[Request],
        moments: &mut moments::Source,
    ) -> Result<(Edit, Vec<f64>)> {
        let model = &opened.model;
        let star = StarOptions {
            clamp: self.clamp,
            steps: self.steps,
            ..StarOptions::default()
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
                    ..FinetuneOptions::new(self.layers.clone(), Some(self.clamp))
                };
                let made = finetune(model, requests, &options)?;
                Ok((made.edit, made.losses))
            }
        }
    }
}

/// What the model says at a moment.
struct Seen {
    /// The likeliest tokens after each prompt, with their probabilities.
    top: Vec<Vec<(String, f64)>>,
    scores: Option<RecordScores>,
    texts: Vec<String>,
}

/// Tokens that are shown after a prompt.
const TOP: i64 = 5;
/// Tokens that a text is continued by.
const TEXT: usize = 40;

pub(super) fn run(arguments: &EditArguments, common: &Common) -> Result<()> {
    arguments.warn(common);
    let opened = arguments.source.open(common)?;
    if let Some(list) = &arguments.facts {
        return many::run(arguments, list, &opened, common);
    }
    let prompt = arguments.prompt.clone().unwrap_or_default();
    let prompts: Vec<String> = std::iter::once(prompt.clone())
        .chain(arguments.paraphrase.iter().cloned())
        .chain(arguments.neighbour.iter().cloned())
        .collect();
    if let Some(path) = &arguments.apply {
        let edit = Edit::load(path)?;
        let before = see(&opened, &prompts, None, &arguments.generate)?;
        let about = format!("{}, of {}", edit.about, path.display());
        let found = Found {
            before,
            about,
            losses: Vec::new(),
            saved: None,
        };
        return found.finish(edit, &opened, &prompts, None, arguments, common);
    }
    let (Some(subject), Some(target)) = (&arguments.subject, &arguments.target) else {
        return Err(Error::config("--target", "is needed with --subject"));
    };
    if !prompt.contains(subject.as_str()) {
        let reason = format!(
            "{subject:?} does not stand in the prompt {prompt:?}; letters and spaces must be the same"
        );
        return Err(Error::config("--subject", reason));
    }
    let plan = arguments.plan(&opened, common)?;
    let truth = match &arguments.truth {
        Some(truth) if truth.trim().is_empty() => {
            return Err(Error::config("--true", "is empty"));
        }
        Some(truth) => truth.clone(),
        None => likeliest(&opened, &prompt)?
            .into_iter()
            .map(|(token, _)| token.trim().to_owned())
            .find(|token| !token.is_empty())
            .unwrap_or_default(),
    };
    let questions = Questions {
        rewrite: prompt.clone(),
        paraphrases: arguments.paraphrase.clone(),
        neighbours: arguments.neighbour.clone(),
        new: target.clone(),
        old: truth.clone(),
    };
    let questions = (!truth.is_empty() && truth != target.trim()).then_some(&questions);
    let template = prompt.replacen(subject.as_str(), "{}", 1);
    let prefixes = plan.prefixes(&opened)?;
    let request = Request::new(&opened.tokenizer, &template, subject, target, &prefixes)?;
    let layers = plan.moment_layers();
    let mut moments = arguments
        .moments
        .source(&opened, arguments.source.path(), layers, common)?;
    say(&plan, &moments.said, common);
    let before = see(&opened, &prompts, questions, &arguments.generate)?;
    let (mut edit, losses) = plan.make(&opened, std::slice::from_ref(&request), &mut moments)?;
    edit.about = format!("{prompt:?} to {target:?}");
    let mut saved = None;
    if let Some(path) = &arguments.save {
        edit.save(path)?;
        saved = Some(path.clone());
    }
    let found = Found {
        before,
        about: edit.about.clone(),
        losses,
        saved,
    };
    found.finish(edit, &opened, &prompts, questions, arguments, common)
}

/// Says what will be done.
fn say(plan: &Plan, moments: &str, common: &Common) {
    if common.quiet {
        return;
    }
    eprintln!("layers {:?}: {}", plan.layers, plan.said);
    if plan.way != Way::Ft {
        eprintln!("{moments}");
    }
}

/// What there is before the edit is written.
struct Found {
    before: Seen,
    about: String,
    losses: Vec<f64>,
    saved: Option<PathBuf>,
}

impl Found {
    /// Writes the edit, looks, takes it back, and prints all of it.
    fn finish(
        self,
        edit: Edit,
        opened: &Opened,
        prompts: &[String],
        questions: Option<&Questions>,
        arguments: &EditArguments,
        common: &Common,
    ) -> Result<()> {
        let norms = edit.norms(&opened.model)?;
        let method = edit.method.clone();
        let mut handle = EditHandle::apply(&opened.model, edit)?;
        let after = see(opened, prompts, questions, &arguments.generate);
        handle.undo(&opened.model)?;
        let after = after?;
        let undone = handle.is_as_before(&opened.model)?;
        if common.json {
            let scores = |seen: &Seen| {
                let own = seen.scores.as_ref()?;
                Some(Scores::new(std::slice::from_ref(own)))
            };
            let answers = |seen: &Seen| -> Value {
                let each = prompts.iter().zip(&seen.top);
                each.map(|(prompt, top)| json!({ "prompt": prompt, "top": top }))
                    .collect()
            };
            let changes: Value = norms
                .iter()
                .map(|(name, change, own)| json!({ "name": name, "norm": change, "of": own }))
                .collect();
            let whole = json!({
                "model": opened.described,
                "method": method,
                "about": self.about,
                "changes": changes,
                "losses": self.losses,
                "before": { "answers": answers(&self.before), "scores": scores(&self.before), "texts": self.before.texts },
                "after": { "answers": answers(&after), "scores": scores(&after), "texts": after.texts },
                "saved": self.saved,
                "undone": undone,
            });
            println!("{whole}");
            return refuse_unless(undone);
        }
        println!("{method}: {}", self.about);
        for (name, change, own) in &norms {
            println!(
                "{name}: changed by {change:.4}, {:.3} % of its norm",
                100.0 * change / own
            );
        }
        if let (Some(first), Some(last)) = (self.losses.first(), self.losses.last()) {
            println!(
                "loss {first:.4} to {last:.4} in {} evaluations",
                self.losses.len()
            );
        }
        for (prompt, (before, after)) in prompts.iter().zip(self.before.top.iter().zip(&after.top))
        {
            println!("\n{prompt}");
            println!("  before: {}", listed(before));
            println!("  after:  {}", listed(after));
        }
        if let (Some(before), Some(now)) = (&self.before.scores, &after.scores) {
            println!();
            print_scores(
                &Scores::new(std::slice::from_ref(before)),
                &Scores::new(std::slice::from_ref(now)),
            );
        }
        for (start, (before, after)) in arguments
            .generate
            .iter()
            .zip(self.before.texts.iter().zip(&after.texts))
        {
            println!("\n{start}");
            println!("  before: {before}");
            println!("  after:  {after}");
        }
        if let Some(path) = &self.saved {
            println!("\nthe change is in {}", path.display());
        }
        if undone {
            println!("\ntaken back: every byte of the changed parameters is as before");
        }
        refuse_unless(undone)
    }
}

fn refuse_unless(undone: bool) -> Result<()> {
    if undone {
        return Ok(());
    }
    Err(Error::data(
        "",
        "taking the edit back did not restore every byte",
    ))
}

/// Scores before and after, times 100.
fn print_scores(before: &Scores, after: &Scores) {
    println!("score  before   after");
    let shown =
        |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.1}"));
    for ((name, old), (_, new)) in before.table().iter().zip(after.table()) {
        println!("{name:5} {:>7} {:>7}", shown(*old), shown(new));
    }
}

fn listed(top: &[(String, f64)]) -> String {
    let words: Vec<String> = top
        .iter()
        .map(|(token, p)| format!("{:?} {:.1} %", token.trim(), 100.0 * p))
        .collect();
    words.join(", ")
}

fn see(
    opened: &Opened,
    prompts: &[String],
    questions: Option<&Questions>,
    starts: &[String],
) -> Result<Seen> {
    let top = prompts
        .iter()
        .map(|prompt| likeliest(opened, prompt))
        .collect::<Result<_>>()?;
    let scores = questions
        .map(|questions| weigh(&opened.model, &opened.tokenizer, questions))
        .transpose()?;
    Ok(Seen {
        top,
        scores,
        texts: continued(opened, starts)?,
    })
}

/// The likeliest tokens after a prompt.
fn likeliest(opened: &Opened, prompt: &str) -> Result<Vec<(String, f64)>> {
    let _guard = tch::no_grad_guard();
    let ids = opened.tokenizer.encode(prompt.trim_end())?;
    let ids = Tensor::f_from_slice(&ids)?
        .f_unsqueeze(0)?
        .f_to(opened.model.device())?;
    let logits = opened.model.run(&ids, &mut Run::new().last_only())?;
    let odds = logits
        .f_flatten(0, -1)?
        .f_to(tch::Device::Cpu)?
        .f_softmax(0, Kind::Double)?;
    let count = TOP.min(opened.model.config().vocab_size);
    let (odds, ids) = odds.f_topk(count, 0, true, true)?;
    let odds = Vec::<f64>::try_from(&odds)?;
    let ids = Vec::<i64>::try_from(&ids)?;
    ids.into_iter()
        .zip(odds)
        .map(|(id, p)| {
            // A vocabulary may be padded with tokens that mean nothing.
            let token = opened.tokenizer.piece(id);
            Ok((token.unwrap_or_else(|_| format!("token {id}")), p))
        })
        .collect()
}

/// Texts written on, token by likeliest token.
fn continued(opened: &Opened, starts: &[String]) -> Result<Vec<String>> {
    if starts.is_empty() {
        return Ok(Vec::new());
    }
    let prompts = starts
        .iter()
        .map(|start| opened.tokenizer.encode(start))
        .collect::<Result<Vec<_>>>()?;
    let stop: Vec<i64> = opened.tokenizer.eos().into_iter().collect();
    let made = generate(&opened.model, &prompts, TEXT, &Sampling::greedy(), &stop)?;
    made.iter()
        .map(|ids| {
            let text = opened.tokenizer.decode(ids)?;
            Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
        })
        .collect()
}
