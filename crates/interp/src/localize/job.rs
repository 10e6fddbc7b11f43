//! The study itself: facts are traced, edited at each layer, judged, and put back.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use densely_core::{Error, Result};
use densely_lm::{Lm, Tokenizer};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use super::cases::Cases;
use super::table::{Point, Table, on_one_line, settle};
use super::{
    Case, Event, LocalizeOptions, Method, Outcome, Study, Variant, fractions, neighbourhood_score,
    rewrite_score,
};
use crate::average::{Averages, Interval};
use crate::edit::memit::MomentsOf;
use crate::edit::score::answered;
use crate::edit::{
    Batch, Edit, EditHandle, FinetuneOptions, MemitOptions, Moments, Noised, Objective, Prefixes,
    Request, RomeOptions, StarOptions, TargetLoss, finetune, memit, rome, sequence_log_probs,
};
use crate::noise::Noise;
use crate::sweep::{fingerprint, sweep};
use crate::trace::{Prompt, Trace};

/// Facts whose edits go through all layers before the next ones begin: second moments are loaded once for so many, and a study that is stopped
/// has all layers of the facts that it came to.
const TOGETHER: usize = 20;

/// Tokens of the prompt and of what a noised run says, together.
const NOISED_TOKENS: usize = 12;

/// Prefixes of the two methods that take them.
struct Texts {
    rome: Prefixes,
    memit: Prefixes,
}

/// Makes a study, or goes on with it.
///
/// Traces are in `traces.jsonl`, edits in `edits.csv`, what they are of and judged by in `cases.jsonl`; what is there is not made again. Facts that
/// cannot be traced, whose answer is less probable than the setting says, or whose texts do not fit are left out. An edit that diverges is a row with
/// a note and no score.
///
/// # Errors
/// [`Error::Config`] when settings are out of range, the folder is used and `resume` is not given, or its settings differ, and so when a fact that was
/// edited has another new answer, paraphrase or neighbour now, or an edit another target; [`Error::Corrupt`] when its files are damaged;
/// [`Error::Interrupted`] when somebody asked to stop; [`Error::Io`]; what an edit says. The model is then as it was.
pub fn localize(
    study: &mut Study<'_>,
    options: &LocalizeOptions,
    resume: bool,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<Outcome> {
    let (model, tokenizer) = (study.model, study.tokenizer);
    options.validate(model)?;
    let folder = study.folder;
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let settings = settings(model, study.noise, options)?;
    let kept = settle(&folder.join("settings.json"), &settings, resume, || {
        Ok(json!({
            "rome": Prefixes::rome(model, tokenizer, options.seed)?,
            "memit": Prefixes::memit(model, tokenizer, options.seed)?,
        }))
    })?;
    let prefixes = |name: &str| -> Result<Prefixes> {
        serde_json::from_value(kept[name].clone()).map_err(|error| {
            let path = folder.join("settings.json");
            Error::corrupt(path, format!("its prefixes for {name}: {error}"))
        })
    };
    let mut texts = Texts {
        rome: prefixes("rome")?,
        memit: prefixes("memit")?,
    };
    if let Some(group) = texts.rome.groups.first_mut() {
        group.truncate(1 + options.prefixes);
    }

    let facts: Vec<_> = study.cases.iter().map(|case| case.fact.clone()).collect();
    // The settings were compared already: a folder without traces yet is as good as one with some.
    let traces = sweep(
        model,
        tokenizer,
        &facts,
        study.noise,
        &options.trace,
        &folder.join("traces.jsonl"),
        true,
        &mut |row, done, of| watch(Event::Traced(row, done, of)),
    )?;
    let mut skipped = Vec::new();
    let mut kept: Vec<(&Case, &Trace)> = Vec::new();
    for (case, row) in study.cases.iter().zip(&traces) {
        let id = &case.fact.id;
        match (&row.trace, &row.skipped) {
            (Some(trace), _) if trace.high < options.min_probability => {
                let reason = format!(
                    "its answer has probability {:.4}, below {}",
                    trace.high, options.min_probability
                );
                skipped.push((id.clone(), reason));
            }
            (Some(trace), _) => kept.push((case, trace)),
            (None, reason) => {
                let reason = reason
                    .clone()
                    .unwrap_or_else(|| "was not traced".to_owned());
                skipped.push((id.clone(), reason));
            }
        }
    }

    let traced: Vec<&Trace> = kept.iter().map(|(_, trace)| *trace).collect();
    let averages = (!traced.is_empty())
        .then(|| Averages::new(&traced, Interval::Normal))
        .transpose()?;

    let cases = kept.iter().map(|(case, _)| *case);
    let mut cases = Cases::open(&folder.join("cases.jsonl"), cases)?;
    let (mut table, mut points) = Table::open(&folder.join("edits.csv"))?;
    let mut targets: BTreeMap<(String, Variant), String> = BTreeMap::new();
    for point in &points {
        let place = targets.entry((point.id.clone(), point.variant));
        place.or_insert_with(|| point.target.clone());
    }
    let mut known: BTreeSet<_> = points.iter().map(Point::key).collect();
    let wanted = Wanted::new(&kept, options);
    let all = wanted.count;
    let mut done = known.iter().filter(|key| wanted.has(key)).count();
    for chunk in kept.chunks(TOGETHER) {
        let mut prepared: BTreeMap<(&str, Variant), Option<Prepared>> = BTreeMap::new();
        for layer in &wanted.layers {
            for (case, trace) in chunk {
                for variant in &options.variants {
                    for method in &options.methods {
                        let id = on_one_line(&case.fact.id);
                        let key = (id, *variant, *method, *layer);
                        if known.contains(&key) || !wanted.has(&key) {
                            continue;
                        }
                        if densely_train::signal::interrupted() {
                            let folder = folder.to_owned();
                            return Err(Error::Interrupted { folder });
                        }
                        let place = (case.fact.id.as_str(), *variant);
                        if let Entry::Vacant(slot) = prepared.entry(place) {
                            let made = match Prepared::new(study, case, *variant, &texts, options) {
                                Ok(made) => {
                                    made.check_target(&targets, &case.fact.id)?;
                                    Some(made)
                                }
                                Err(error @ (Error::Config { .. } | Error::Data { .. })) => {
                                    let reason = format!("{variant}: {error}");
                                    skipped.push((case.fact.id.clone(), reason));
                                    None
                                }
                                Err(error) => return Err(error),
                            };
                            slot.insert(made);
                        }
                        let Some(Some(job)) = prepared.get(&place) else {
                            continue;
                        };
                        let fraction = fractions(trace).get(*layer).copied().unwrap_or(0.0);
                        let mut point = Point {
                            id: key.0.clone(),
                            variant: *variant,
                            method: *method,
                            layer: *layer,
                            fraction,
                            high: trace.high,
                            low: trace.low,
                            target: on_one_line(&job.target),
                            pre: job.before.rewrite,
                            post: None,
                            rewrite: None,
                            paraphrase_pre: job.before.paraphrase,
                            paraphrase_post: None,
                            paraphrase: None,
                            neighbour_pre: job.before.neighbour,
                            neighbour_post: None,
                            neighbourhood: None,
                            overall: None,
                            loss: None,
                            note: String::new(),
                        };
                        job.edit(model, study.moments, options, &mut point)?;
                        cases.keep(case)?;
                        table.append(&point)?;
                        known.insert(key);
                        points.push(point);
                        done += 1;
                        if let Some(point) = points.last() {
                            watch(Event::Edited(point, done, all));
                        }
                    }
                }
            }
        }
    }
    points.retain(|point| wanted.has(&point.key()));
    let edited: BTreeSet<&String> = points.iter().map(|point| &point.id).collect();
    Ok(Outcome {
        averages,
        edited: edited.len(),
        points,
        skipped,
    })
}

/// Settings that only some methods read: those that take moments, ROME twice, MEMIT.
pub(super) const OF_METHODS: [&str; 4] = ["moments", "key", "prefixes", "memit_lambda"];

/// The settings that a folder goes on with. Variants, methods and layers may be added.
fn settings(model: &Lm, noise: &Noise, options: &LocalizeOptions) -> Result<Value> {
    let mut own = serde_json::to_value(options)
        .map_err(|error| Error::config("options", format!("cannot be written: {error}")))?;
    if let Some(fields) = own.as_object_mut() {
        for name in ["variants", "methods", "layers", "trace"] {
            fields.remove(name);
        }
        // Methods may be added later, and what they alone read with them.
        let has = |method: Method| options.methods.contains(&method);
        let used = [
            options.methods.iter().any(|method| method.needs_moments()),
            has(Method::Rome),
            has(Method::Rome),
            has(Method::Memit),
        ];
        for (name, used) in OF_METHODS.into_iter().zip(used) {
            if !used {
                fields.remove(name);
            }
        }
    }
    Ok(json!({
        "traces": fingerprint(model, noise, &options.trace)?,
        "edits": own,
    }))
}

/// The edits that are asked for.
struct Wanted {
    /// By fact, whether there is a new answer.
    facts: BTreeMap<String, bool>,
    variants: Vec<Variant>,
    methods: Vec<Method>,
    layers: Vec<usize>,
    count: usize,
}

impl Wanted {
    fn new(kept: &[(&Case, &Trace)], options: &LocalizeOptions) -> Self {
        let facts: BTreeMap<String, bool> = kept
            .iter()
            .map(|(case, _)| (on_one_line(&case.fact.id), case.new.is_some()))
            .collect();
        let (mut variants, mut methods) = (options.variants.clone(), options.methods.clone());
        let mut layers = options.layers.clone();
        variants.sort_unstable();
        variants.dedup();
        methods.sort_unstable();
        methods.dedup();
        layers.sort_unstable();
        layers.dedup();
        let tasks: usize = facts
            .values()
            .map(|has_new| {
                let made = |variant: &&Variant| *has_new || **variant != Variant::ErrorInjection;
                variants.iter().filter(made).count()
            })
            .sum();
        Self {
            count: tasks * methods.len() * layers.len(),
            facts,
            variants,
            methods,
            layers,
        }
    }

    fn has(&self, (id, variant, method, layer): &(String, Variant, Method, usize)) -> bool {
        let has_new = self.facts.get(id).copied();
        has_new.is_some_and(|has_new| has_new || *variant != Variant::ErrorInjection)
            && self.variants.contains(variant)
            && self.methods.contains(method)
            && self.layers.contains(layer)
    }
}

/// A prompt with its answer, and noise on its subject where that is asked for.
struct Question {
    prompt: Vec<i64>,
    answer: Vec<i64>,
    noise: Option<(usize, Tensor)>,
}

impl Question {
    /// Probability of the answer, the mean over draws of noise.
    fn probability(&self, model: &Lm) -> Result<f64> {
        let noise = self.noise.as_ref().map(|(start, draws)| (*start, draws));
        let pair = (self.prompt.as_slice(), self.answer.as_slice());
        let scores = sequence_log_probs(model, &[pair], noise)?;
        let each = scores
            .iter()
            .map(|tokens| tokens.iter().map(|token| token.0).sum::<f64>().exp());
        Ok(each.sum::<f64>() / scores.len().max(1) as f64)
    }
}

/// Probabilities by which edits are judged.
#[derive(Debug, Clone, Copy)]
struct Judged {
    rewrite: f64,
    paraphrase: Option<f64>,
    neighbour: Option<f64>,
}

/// A fact and a task: what is edited and what is asked.
struct Prepared {
    variant: Variant,
    target: String,
    rome: Request,
    memit: Request,
    rewrite: Question,
    paraphrase: Option<Question>,
    neighbour: Option<Question>,
    before: Judged,
}

impl Prepared {
    fn new(
        study: &Study<'_>,
        case: &Case,
        variant: Variant,
        texts: &Texts,
        options: &LocalizeOptions,
    ) -> Result<Self> {
        let (model, tokenizer) = (study.model, study.tokenizer);
        let truth = case.fact.attribute.as_deref().unwrap_or_default();
        let wanted = match variant {
            Variant::ErrorInjection => case.new.as_deref().unwrap_or_default(),
            _ => truth,
        };
        let template = case.template();
        let subject = &case.fact.subject;
        let request =
            |prefixes: &Prefixes| Request::new(tokenizer, &template, subject, wanted, prefixes);
        let (mut rome, mut memit) = (request(&texts.rome)?, request(&texts.memit)?);
        let bare = rome.bare()?.ids.clone();
        let draw = |width: usize| -> Result<Tensor> {
            let d = model.config().d_model;
            study
                .noise
                .sample(options.trace.seed, options.trace.samples, width as i64, d)
        };
        let noise = draw(rome.subject.len())?;
        if variant == Variant::TracingReversal {
            let ids = noised_output(model, tokenizer, &bare, rome.subject.start, &noise)?;
            rome.target.clone_from(&ids);
            memit.target = ids;
        }
        let forcing = variant == Variant::FactForcing;
        let target = rome.target.clone();
        let rewrite = Question {
            prompt: bare,
            answer: target.clone(),
            noise: forcing.then(|| (rome.subject.start, noise.shallow_clone())),
        };
        if forcing {
            rome.noise = Some(noise.shallow_clone());
            memit.noise = Some(noise);
        }
        for (method, request) in [(Method::Rome, &rome), (Method::Memit, &memit)] {
            if options.methods.contains(&method) {
                request.check_length(model)?;
            }
        }
        let paraphrase = match &case.paraphrase {
            None => None,
            Some(text) => paraphrase(tokenizer, text, subject, &target, forcing, &draw)?,
        };
        let neighbour = match &case.neighbour {
            None => None,
            Some(other) => {
                let (prompt, _) = answered(tokenizer, &other.prompt, &other.answer)?;
                // As in the reference: the probability of what the edit is about must not change there, whatever the right answer is.
                Some(Question {
                    prompt,
                    answer: target.clone(),
                    noise: None,
                })
            }
        };
        let mut made = Self {
            variant,
            target: tokenizer.decode(&target)?.trim().to_owned(),
            rome,
            memit,
            rewrite,
            paraphrase,
            neighbour,
            before: Judged {
                rewrite: 0.0,
                paraphrase: None,
                neighbour: None,
            },
        };
        made.before = made.judge(model)?;
        Ok(made)
    }

    /// Fails when rows of the fact and task are of another target than this one.
    fn check_target(&self, targets: &BTreeMap<(String, Variant), String>, id: &str) -> Result<()> {
        let now = on_one_line(&self.target);
        match targets.get(&(on_one_line(id), self.variant)) {
            Some(begun) if *begun != now => {
                let reason = format!(
                    "edits of fact {id:?} for {} were of {begun:?} so far, and would be of {now:?} now; take the list, the seed and the machine of then, or another folder",
                    self.variant
                );
                Err(Error::config("facts", reason))
            }
            _ => Ok(()),
        }
    }

    fn judge(&self, model: &Lm) -> Result<Judged> {
        let of = |question: &Option<Question>| -> Result<Option<f64>> {
            question
                .as_ref()
                .map(|question| question.probability(model))
                .transpose()
        };
        Ok(Judged {
            rewrite: self.rewrite.probability(model)?,
            paraphrase: of(&self.paraphrase)?,
            neighbour: of(&self.neighbour)?,
        })
    }

    /// Edits the model, judges it, puts it back, and fills in the rest of the row.
    fn edit(
        &self,
        model: &Lm,
        moments: &mut MomentsOf<'_>,
        options: &LocalizeOptions,
        point: &mut Point,
    ) -> Result<()> {
        let (edit, loss) = match self.change(model, moments, options, point) {
            Ok(made) => made,
            Err(error @ (Error::Diverged { .. } | Error::Data { .. })) => {
                point.note = on_one_line(&error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        point.loss = loss;
        let mut handle = match EditHandle::apply(model, edit) {
            Ok(handle) => handle,
            // A change that is not finite.
            Err(error @ Error::Data { .. }) => {
                point.note = on_one_line(&error.to_string());
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let after = self.judge(model);
        handle.undo(model)?;
        let after = after?;
        let values = [Some(after.rewrite), after.paraphrase, after.neighbour];
        if values.iter().flatten().any(|value| !value.is_finite()) {
            "the edited model gives no probabilities".clone_into(&mut point.note);
            return Ok(());
        }
        let score = |before: Option<f64>, after: Option<f64>| {
            Some(rewrite_score(self.variant, before?, after?))
        };
        point.post = Some(after.rewrite);
        point.rewrite = score(Some(self.before.rewrite), point.post);
        point.paraphrase_post = after.paraphrase;
        point.paraphrase = score(self.before.paraphrase, after.paraphrase);
        point.neighbour_post = after.neighbour;
        point.neighbourhood = match (self.before.neighbour, after.neighbour) {
            (Some(before), Some(after)) => Some(neighbourhood_score(before, after)),
            _ => None,
        };
        let measured: Vec<f64> = [point.rewrite, point.paraphrase, point.neighbourhood]
            .into_iter()
            .flatten()
            .collect();
        point.overall = Some(measured.iter().sum::<f64>() / measured.len().max(1) as f64);
        Ok(())
    }

    /// The change by the point's method at its layer, and its last loss.
    fn change(
        &self,
        model: &Lm,
        moments: &mut MomentsOf<'_>,
        options: &LocalizeOptions,
        point: &Point,
    ) -> Result<(Edit, Option<f64>)> {
        let forcing = self.variant == Variant::FactForcing;
        let objective = match self.variant {
            Variant::FactErasure => Objective::Lower,
            _ => Objective::Raise,
        };
        let layers: Vec<usize> = point
            .method
            .layers(point.layer, model.config().n_layers)
            .collect();
        // The released searches never end early: their count of patience starts anew at each step.
        let star = StarOptions {
            lr: if forcing { 0.05 } else { 0.5 },
            steps: if forcing { 25 } else { 20 },
            clamp: options.rome_clamp,
            kl_factor: options.rome_kl,
            stop: 0.0,
            objective,
            ..StarOptions::default()
        };
        match point.method {
            Method::Rome => {
                let settings = RomeOptions {
                    layer: point.layer,
                    key: options.key,
                    star,
                };
                let moments: Rc<Moments> = moments(point.layer)?;
                let made = rome(model, &self.rome, &moments, &settings)?;
                Ok((made.edit, made.losses.last().copied()))
            }
            Method::Memit => {
                let base = MemitOptions::new(layers, options.memit_lambda);
                let settings = MemitOptions {
                    star: StarOptions {
                        // The rate and steps of forcing are ROME's alone.
                        lr: base.star.lr,
                        clamp: base.star.clamp,
                        kl_factor: base.star.kl_factor,
                        steps: options.memit_steps,
                        ..star
                    },
                    ..base
                };
                let requests = std::slice::from_ref(&self.memit);
                let made = memit(model, requests, moments, &settings)?;
                let loss = made.losses.first().and_then(|losses| losses.last());
                let loss = loss.copied();
                Ok((made.edit, loss))
            }
            Method::Ft1 | Method::Ft5 => {
                let (one, five) = self.variant.clamps();
                let clamp = if point.method == Method::Ft1 {
                    one
                } else {
                    five
                };
                let settings = FinetuneOptions {
                    lr: options.finetune_lr,
                    steps: if forcing { 50 } else { 25 },
                    loss: TargetLoss::SequenceSum,
                    patience: 5,
                    objective,
                    ..FinetuneOptions::new(layers, Some(clamp))
                };
                let made = finetune(model, std::slice::from_ref(&self.rome), &settings)?;
                Ok((made.edit, made.losses.last().copied()))
            }
        }
    }
}

/// The paraphrase with the target behind it. Under noise the subject must stand in it, or it is not measured.
fn paraphrase(
    tokenizer: &Tokenizer,
    text: &str,
    subject: &str,
    target: &[i64],
    forcing: bool,
    draw: &dyn Fn(usize) -> Result<Tensor>,
) -> Result<Option<Question>> {
    let text = text.trim_end();
    if text.is_empty() {
        return Ok(None);
    }
    let (prompt, noise) = if forcing {
        if !text.contains(subject) {
            return Ok(None);
        }
        let prompt = Prompt::new(tokenizer, text, subject, None)?;
        let noise = draw(prompt.subject.len())?;
        (prompt.ids, Some((prompt.subject.start, noise)))
    } else {
        (tokenizer.encode(text)?, None)
    };
    Ok(Some(Question {
        prompt,
        answer: target.to_vec(),
        noise,
    }))
}

/// What the model says with a noised subject: the likeliest token of the mean over draws, and so on, until prompt and answer have so many tokens
/// (one token at least) or the text ends.
fn noised_output(
    model: &Lm,
    tokenizer: &Tokenizer,
    prompt: &[i64],
    start: usize,
    noise: &Tensor,
) -> Result<Vec<i64>> {
    let _guard = tch::no_grad_guard();
    let draws = noise.size().first().copied().unwrap_or(1) as usize;
    let most = NOISED_TOKENS.saturating_sub(prompt.len()).max(1);
    let mut found: Vec<i64> = Vec::new();
    while found.len() < most {
        let row = [prompt, &found].concat();
        let rows = vec![row; draws];
        let noised = Noised {
            start,
            draws: noise,
            rows: draws,
        };
        let batch = Batch::new(model, &rows, Some(noised))?;
        let (residual, _) = batch.enter(model, model.config().n_layers, &[])?;
        let last = prompt.len() + found.len() - 1;
        let places: Vec<(usize, usize)> = (0..draws).map(|row| (row, last)).collect();
        let mean = batch
            .log_probs(model, &residual, &places)?
            .f_exp()?
            .f_mean_dim([0i64].as_slice(), false, None::<Kind>)?;
        let next = mean.f_argmax(None, false)?.f_int64_value(&[])?;
        found.push(next);
        if Some(next) == tokenizer.eos() {
            break;
        }
    }
    Ok(found)
}
