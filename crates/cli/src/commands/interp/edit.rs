//! `densely interp edit`.

mod many;
pub(super) mod moments;
mod plan;

use std::path::PathBuf;

use densely_core::tch::{self, Kind, Tensor};
use densely_core::{Error, Result};
use densely_interp::edit::score::{Questions, RecordScores, Scores, weigh};
use densely_interp::edit::{Edit, EditHandle};
use densely_lm::{Opened, Run, Sampling, generate};
use serde_json::{Value, json};

use super::Key;
use crate::Common;
use crate::commands::lm::Source;
use moments::MomentsArguments;
use plan::{Limit, Loss, Plan, Way};

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
    /// Which key ROME writes for; `averaged` when left out.
    #[arg(long, value_enum)]
    key: Option<Key>,
    /// How the target's tokens enter the loss of finetuning; `sequence-mean` when left out.
    #[arg(long, value_enum)]
    loss: Option<Loss>,
    /// Most that is added, in norms of the value as it was; of finetuning, most that an entry changes, or `none`.
    #[arg(long, value_name = "NUMBER|none")]
    clamp: Option<Limit>,
    /// Evaluations of the loss at most.
    #[arg(long)]
    steps: Option<usize>,
    /// Weight of the second moments in MEMIT; by the model when left out, which takes moments of a text.
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
            "facts", "save", "subject", "target", "truth", "method", "layers", "steps", "clamp", "lambda", "key", "loss", "moments", "moments_text"
        ]
    )]
    apply: Option<PathBuf>,
}

impl EditArguments {
    /// Fails on texts that are empty.
    fn check_texts(&self) -> Result<()> {
        if self
            .prompt
            .as_ref()
            .is_some_and(|text| text.trim().is_empty())
        {
            return Err(Error::config("--prompt", "the prompt is empty"));
        }
        for (name, texts) in [
            ("--paraphrase", &self.paraphrase),
            ("--neighbour", &self.neighbour),
            ("--generate", &self.generate),
        ] {
            if texts.iter().any(|text| text.trim().is_empty()) {
                return Err(Error::config(name, "is empty"));
            }
        }
        Ok(())
    }

    /// Says which options change nothing.
    fn warn(&self, common: &Common) {
        let drawn = common.seed.map(|_| "--seed");
        if self.apply.is_some() {
            super::without_effect("--apply", drawn);
            return;
        }
        let of_memit = self.lambda.map(|_| "--lambda");
        let of_rome = self.key.as_ref().map(|_| "--key");
        let of_ft = self.loss.map(|_| "--loss");
        let of_both = self.moments.given().into_iter().chain(drawn);
        let given: Vec<&str> = match self.method {
            Way::Rome => of_memit.into_iter().chain(of_ft).collect(),
            Way::Memit => of_rome.into_iter().chain(of_ft).collect(),
            Way::Ft => of_memit.into_iter().chain(of_rome).chain(of_both).collect(),
        };
        super::without_effect(&format!("--method {}", self.method.name()), given);
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
    arguments.check_memit()?;
    arguments.check_texts()?;
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
            plan: None,
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
    let mut plan = arguments.plan(&opened, common)?;
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
    let request = plan.request(
        &opened,
        &template,
        (subject.as_str(), target.as_str()),
        &prefixes,
    )?;
    // What does not fit fails here, before hours of measuring.
    let before = see(&opened, &prompts, questions, &arguments.generate)?;
    let layers = plan.moment_layers();
    let mut moments = arguments
        .moments
        .source(&opened, arguments.source.path(), layers, common)?;
    plan.know(&moments);
    say(&plan, common);
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
        plan: Some(plan),
    };
    found.finish(edit, &opened, &prompts, questions, arguments, common)
}

/// Says what will be done.
fn say(plan: &Plan, common: &Common) {
    if common.quiet {
        return;
    }
    eprintln!("layers {:?}: {}", plan.layers, plan.said);
    eprintln!("{}", plan.described());
    if let Some(moments) = &plan.moments {
        eprintln!("{moments}");
    }
}

/// What there is before the edit is written.
struct Found {
    before: Seen,
    about: String,
    losses: Vec<f64>,
    saved: Option<PathBuf>,
    /// `None` for an edit that was saved.
    plan: Option<Plan>,
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
            let mut whole = json!({
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
            if let Some(plan) = &self.plan {
                plan.add_to(&mut whole);
            }
            println!("{whole}");
            return refuse_unless(undone);
        }
        println!("{method}: {}", self.about);
        if let Some(plan) = &self.plan {
            println!("{}", plan.described());
        }
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
