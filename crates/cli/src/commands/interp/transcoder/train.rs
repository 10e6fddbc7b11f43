//! `densely interp transcoder train`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use densely_core::{Error, Result};
use densely_interp::activations::{Activations, layer_of};
use densely_interp::corpus::Corpus;
use densely_interp::dictionary::evaluate::{Evaluation, InPlace, evaluate};
use densely_interp::dictionary::fit::{DICTIONARY, FitSettings, Fitted, Resample, Style, fit};
use densely_interp::dictionary::folder::Metadata;
use densely_interp::dictionary::{Activation, Dead, Sparsity};
use densely_lm::{Opened, Run};
use densely_train::machine;
use densely_train::plot::{self, Axes, Series};
use densely_train::report::{self, Report, Section};
use densely_train::run::FitOptions;
use serde_json::json;

use super::super::model_name;
use super::{
    Judging, Storing, Texts, Watch, behind, enters, evaluate_options, evaluation_words, saved_bar,
};
use crate::Common;
use crate::commands::lm::Source;
use crate::commands::train::interp::Found;

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    /// From what enters an MLP to what leaves it.
    Transcoder,
    /// The same, with a linear way past the features.
    Skip,
    /// From what leaves an MLP to itself.
    Sae,
}

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Transcoder => "transcoder",
            Self::Skip => "skip transcoder",
            Self::Sae => "autoencoder",
        }
    }
}

/// How features are kept few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Few {
    /// The k largest of each token.
    TopK,
    /// The k largest of each token on average.
    BatchTopK,
    /// Those above 0.
    Relu,
    /// Those above a threshold that is learnt.
    JumpRelu,
}

/// What is trained and how; what is left out is the recipe's.
#[derive(Debug, clap::Args)]
pub(super) struct Training {
    /// Layer whose MLP is read, or several as in 4,8,12, trained one behind the other on the same passes of the model; the middle one when left out.
    #[arg(long, value_name = "N", value_delimiter = ',')]
    layer: Vec<usize>,
    /// Hook point that is read, instead of the layer's.
    #[arg(long, value_name = "POINT")]
    read: Option<String>,
    /// Hook point that is given, instead of the layer's.
    #[arg(long, value_name = "POINT")]
    write: Option<String>,
    /// Whose recipe is followed: sparsify, paper or sae-lens.
    #[arg(long, default_value = "sparsify")]
    style: Style,
    /// Features.
    #[arg(long, value_name = "N", conflicts_with = "expansion")]
    features: Option<i64>,
    /// Features for each value of the input.
    #[arg(long, default_value_t = 16, value_name = "N")]
    expansion: i64,
    /// How features are kept few.
    #[arg(long, value_enum)]
    activation: Option<Few>,
    /// Decoder rows of norm 1, or free.
    #[arg(long, value_name = "true|false")]
    unit_rows: Option<bool>,
    /// Learning rate of Adam.
    #[arg(long)]
    lr: Option<f64>,
    /// Steps over which it climbs.
    #[arg(long, value_name = "STEPS")]
    warmup: Option<u64>,
    /// Tokens of a step.
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Passes over the texts.
    #[arg(long, value_name = "N")]
    epochs: Option<u64>,
    /// Tokens without firing behind which a feature is dead.
    #[arg(long, value_name = "TOKENS")]
    dead_after: Option<u64>,
    /// Set dead features anew every so many steps.
    #[arg(long, value_name = "STEPS")]
    resample_every: Option<u64>,
}

/// How many features a token may have, by number or by price.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sparse {
    pub(super) k: Option<f64>,
    pub(super) coefficient: Option<f64>,
}

impl Training {
    /// The points that are read and given by a dictionary of this kind, of each layer.
    pub(super) fn points(&self, kind: Kind, opened: &Opened) -> Result<Vec<(String, String)>> {
        let middle = [opened.model.config().n_layers / 2];
        let layers: &[usize] = if self.layer.is_empty() {
            &middle
        } else {
            &self.layer
        };
        if layers.len() > 1 && (self.read.is_some() || self.write.is_some()) {
            let reason = "are of one layer";
            return Err(Error::config("--read and --write", reason));
        }
        layers
            .iter()
            .map(|layer| self.points_of(*layer, kind, opened))
            .collect()
    }

    fn points_of(&self, layer: usize, kind: Kind, opened: &Opened) -> Result<(String, String)> {
        let leaves = format!("blocks.{layer}.hook_mlp_out");
        let read = match (&self.read, kind) {
            (Some(read), _) => read.clone(),
            (None, Kind::Sae) => self.write.clone().unwrap_or_else(|| leaves.clone()),
            // The MLP's input of the layer that is given.
            (None, _) => match &self.write {
                Some(write) => enters(&opened.model, layer_of(&opened.model, write)?)?,
                None => enters(&opened.model, layer)?,
            },
        };
        let write = match (&self.write, kind) {
            (Some(write), _) => write.clone(),
            (None, Kind::Sae) => read.clone(),
            (None, _) if self.read.is_some() => behind(&read).unwrap_or(leaves),
            (None, _) => leaves,
        };
        let (from, to) = (
            layer_of(&opened.model, &read)?,
            layer_of(&opened.model, &write)?,
        );
        if from > to {
            let reason = format!("`{write}` is before `{read}`");
            return Err(Error::config("--write", reason));
        }
        if kind != Kind::Sae && read == write {
            let reason = format!("a {} gives another point than `{read}`", kind.name());
            return Err(Error::config("--write", reason));
        }
        if kind == Kind::Sae && read != write {
            let reason = format!("an autoencoder gives what it reads, `{read}`, and not `{write}`");
            return Err(Error::config("--write", reason));
        }
        if !self.layer.is_empty() && (from != layer || to != layer) {
            let reason = format!("is {layer}, and the points are of layers {from} and {to}");
            return Err(Error::config("--layer", reason));
        }
        Ok((read, write))
    }

    /// The settings of a training on activations of so many tokens an epoch.
    pub(super) fn settings(
        &self,
        kind: Kind,
        sparse: Sparse,
        (read, write): (&str, &str),
        opened: &Opened,
        tokens: usize,
    ) -> Result<FitSettings> {
        let widths = (width(opened, read)?, width(opened, write)?);
        let features = self
            .features
            .unwrap_or(self.expansion.saturating_mul(widths.0));
        let mut settings = FitSettings::new(self.style, read, write, widths, features);
        settings.dictionary.skip = kind == Kind::Skip;
        self.set_activation(&mut settings, sparse)?;
        settings.batch = self.batch.unwrap_or(settings.batch);
        settings.epochs = self.epochs.unwrap_or(settings.epochs);
        settings.unit_rows = self.unit_rows.unwrap_or(settings.unit_rows);
        settings.dead_after = self.dead_after.unwrap_or(settings.dead_after);
        if let Some(every) = self.resample_every {
            settings.resample = Some(Resample {
                every,
                ..Resample::default()
            });
        }
        if let (Some(lr), densely_train::optim::OptimConfig::Adam(adam)) =
            (self.lr, &mut settings.optim)
        {
            adam.lr = lr;
        }
        let per_epoch = (tokens / settings.batch.max(1)).max(1) as u64;
        let steps = settings.epochs.saturating_mul(per_epoch);
        settings.schedule.warmup_steps = match self.warmup {
            Some(warmup) => warmup,
            None => shortened(
                "warm-up of the learning rate",
                settings.schedule.warmup_steps,
                steps,
            ),
        };
        settings.sparsity_warmup =
            shortened("warm-up of sparsity", settings.sparsity_warmup, steps);
        settings.validate()?;
        Ok(settings)
    }

    fn set_activation(&self, settings: &mut FitSettings, sparse: Sparse) -> Result<()> {
        let dictionary = &mut settings.dictionary;
        let own = match dictionary.activation {
            Activation::TopK { .. } => Few::TopK,
            Activation::BatchTopK { .. } => Few::BatchTopK,
            Activation::JumpRelu { .. } => Few::JumpRelu,
            Activation::Relu {} | Activation::Gated {} => Few::Relu,
        };
        let few = self.activation.unwrap_or(own);
        let k = sparse.k.unwrap_or(32.0);
        let by_k = matches!(few, Few::TopK | Few::BatchTopK);
        if matches!(few, Few::TopK) && k.fract() != 0.0 {
            let reason = format!("must be whole for the k largest of a token, got {k}");
            return Err(Error::config("--k", reason));
        }
        if by_k && sparse.coefficient.is_some() {
            let reason = "is for features that are above 0 or a threshold; take --k";
            return Err(Error::config("--coefficient", reason));
        }
        if !by_k && sparse.k.is_some() {
            let reason = "is for the k largest features; take --coefficient, or --activation top-k";
            return Err(Error::config("--k", reason));
        }
        dictionary.activation = match few {
            Few::TopK => Activation::TopK {
                k: k.round() as i64,
                rescale: false,
            },
            Few::BatchTopK => Activation::BatchTopK { k, rescale: false },
            Few::Relu => Activation::Relu {},
            Few::JumpRelu => Activation::JumpRelu {
                threshold: 0.01,
                bandwidth: 0.05,
                ste_to_input: false,
            },
        };
        let objective = &mut dictionary.objective;
        match (few, &mut objective.sparsity) {
            (Few::TopK | Few::BatchTopK, sparsity) => *sparsity = Sparsity::None {},
            (Few::JumpRelu, sparsity) if !matches!(sparsity, Sparsity::L0 { .. }) => {
                *sparsity = Sparsity::L0 { coefficient: 1e-3 };
            }
            (Few::Relu, sparsity) if matches!(sparsity, Sparsity::None {}) => {
                *sparsity = Sparsity::L1 {
                    coefficient: 1e-3,
                    by_norm: true,
                };
            }
            _ => (),
        }
        if !by_k && matches!(objective.dead, Dead::AuxK { .. }) && self.activation.is_some() {
            objective.dead = Dead::Nothing {};
        }
        if let (
            Some(given),
            Sparsity::L1 { coefficient, .. }
            | Sparsity::L0 { coefficient }
            | Sparsity::Tanh { coefficient, .. },
        ) = (sparse.coefficient, &mut objective.sparsity)
        {
            *coefficient = given;
        }
        Ok(())
    }
}

/// The recipe's warm-up, or a tenth of the steps where it would be longer.
fn shortened(what: &str, own: u64, steps: u64) -> u64 {
    let most = steps / 10;
    if own <= most {
        return own;
    }
    tracing::warn!("{what}: {most} steps instead of {own}, since there are {steps} in all");
    most
}

/// The width of a point of a model.
fn width(opened: &Opened, point: &str) -> Result<i64> {
    let layer = layer_of(&opened.model, point)?;
    let ids = tch::Tensor::from_slice(&[0i64])
        .f_reshape([1, 1])?
        .f_to_device(opened.model.device())?;
    let mut run = Run::new().stop_at(layer + 1).cache(&[point]);
    let _ = opened.model.run(&ids, &mut run)?;
    Ok(run.take_cache().get(point)?.size().iter().product())
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples: densely interp transcoder train gpt2 --text pile.jsonl --layer 8 --store activations --out runs/gpt2-mlp8\n\
                  densely interp transcoder train gpt2 --text pile.jsonl --layer 8 --style paper --features 24576 --coefficient 1.4e-4\n\
                  Ctrl-C saves; the same command with --resume goes on. The dictionary is written to the folder `dictionary` of the run."
)]
pub(crate) struct Train {
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    texts: Texts,
    #[command(flatten)]
    judging: Judging,
    #[command(flatten)]
    storing: Storing,
    /// What is trained.
    #[arg(long, value_enum, default_value = "transcoder")]
    kind: Kind,
    /// Features of a token, of the k largest; 32 when left out.
    #[arg(long)]
    k: Option<f64>,
    /// Price of features, where they are not the k largest.
    #[arg(long, value_name = "X")]
    coefficient: Option<f64>,
    #[command(flatten)]
    training: Training,
    /// The run folder; `runs/<kind>-<layer's point>` when left out.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with a training that was begun in the same folder.
    #[arg(long)]
    resume: bool,
}

/// A training that was made.
struct Made {
    folder: PathBuf,
    fitted: Fitted,
    evaluation: Evaluation,
    seconds: f64,
    tokens: u64,
    harvested: (u64, f64),
    settings: FitSettings,
}

/// Trains and judges one dictionary.
pub(super) struct Job<'a> {
    pub(super) opened: &'a Opened,
    pub(super) model: &'a Path,
    pub(super) texts: &'a [PathBuf],
    pub(super) train: &'a Activations<'a>,
    pub(super) judged: &'a Activations<'a>,
    pub(super) folder: &'a Path,
    pub(super) resume: bool,
}

impl Job<'_> {
    pub(super) fn fit(&self, settings: &FitSettings, common: &Common) -> Result<Fitted> {
        let names: Vec<String> = self
            .texts
            .iter()
            .map(|text| text.display().to_string())
            .collect();
        let metadata = Metadata {
            model_name: Some(model_name(self.model)),
            hook_name: Some(settings.read.clone()),
            hook_name_out: (settings.read != settings.write).then(|| settings.write.clone()),
            dataset_path: Some(names.join(", ")),
            ..Metadata::default()
        };
        let table = self.texts.first().map_or(Path::new(""), PathBuf::as_path);
        let options = FitOptions {
            folder: self.folder,
            table,
            seed: common.seed.unwrap_or(0),
            device: common.device.open()?,
            resume: self.resume.then_some(densely_train::run::ResumeFrom::Last),
        };
        let mut watch = Watch::new(common.quiet);
        let fitted = fit(
            settings,
            self.train,
            Some(self.judged),
            &metadata,
            &options,
            &mut |event| {
                watch.see(event);
                Ok(())
            },
        );
        watch.end();
        fitted
    }
}

pub(super) fn run(arguments: &Train, common: &Common) -> Result<()> {
    make(arguments, common, &mut |made| {
        print(arguments, made, common);
    })?;
    Ok(())
}

/// Trains and judges a dictionary for each layer; `tell` hears of each that is done.
fn make(arguments: &Train, common: &Common, tell: &mut dyn FnMut(&Made)) -> Result<Vec<Made>> {
    let opened = arguments.source.open(common)?;
    let (train, test) = arguments.texts.parts(&opened, &arguments.judging)?;
    say_corpus(&train, &test);
    let places = arguments.training.points(arguments.kind, &opened)?;
    let seed = common.seed.unwrap_or(0);
    let names: Vec<&str> = places
        .iter()
        .flat_map(|(read, write)| [read.as_str(), write.as_str()])
        .collect();
    let options = arguments.storing.options(&names, &arguments.texts, seed);
    let (train_on, judge_by) = arguments
        .storing
        .activations(&opened, (&train, &test), options)?;
    if places.len() > 1 && arguments.storing.store.is_none() {
        tracing::warn!(
            "without --store each of {} layers asks the model for its activations again",
            places.len()
        );
    }
    let tokens: usize = (0..train_on.buffers()).map(|i| train_on.tokens(i)).sum();
    let sparse = Sparse {
        k: arguments.k,
        coefficient: arguments.coefficient,
    };
    let mut all = Vec::new();
    for (read, write) in &places {
        let begun = std::time::Instant::now();
        let settings =
            arguments
                .training
                .settings(arguments.kind, sparse, (read, write), &opened, tokens)?;
        let name = write.replace('.', "-");
        let folder = match (&arguments.out, places.len()) {
            (Some(out), 1) => out.clone(),
            (Some(out), _) => out.join(name),
            (None, _) => {
                let kind = arguments.kind.name().replace(' ', "-");
                PathBuf::from(format!("runs/{kind}-{name}"))
            }
        };
        tracing::info!(
            "{} from {read} to {write}, {} features, run folder {}",
            arguments.kind.name(),
            settings.dictionary.d_sae,
            folder.display()
        );
        let job = Job {
            opened: &opened,
            model: arguments.source.path(),
            texts: &arguments.texts.text,
            train: &train_on,
            judged: &judge_by,
            // Of several layers the later ones may not have begun.
            resume: arguments.resume && (places.len() == 1 || folder.exists()),
            folder: &folder,
        };
        let fitted = job.fit(&settings, common)?;
        let evaluation = judge(&job, &fitted, &settings, &test, arguments, common)?;
        let made = Made {
            evaluation,
            seconds: begun.elapsed().as_secs_f64(),
            tokens: (tokens as u64).saturating_mul(fitted.epochs),
            harvested: train_on.harvested(),
            folder,
            fitted,
            settings,
        };
        write_report(arguments, &made)?;
        tell(&made);
        all.push(made);
    }
    Ok(all)
}

pub(super) fn say_corpus(train: &Corpus, test: &Corpus) {
    tracing::info!(
        "{} tokens to train on, {} to judge by, windows of {}",
        train.tokens(),
        test.tokens(),
        train.context()
    );
}

fn judge(
    job: &Job,
    fitted: &Fitted,
    settings: &FitSettings,
    test: &Corpus,
    arguments: &Train,
    common: &Common,
) -> Result<Evaluation> {
    let places = [InPlace {
        dictionary: &fitted.dictionary,
        read: &settings.read,
        write: &settings.write,
    }];
    let options = evaluate_options(&arguments.texts, arguments.judging.ablation);
    let mut bar = saved_bar(common.quiet, job.folder);
    evaluate(&job.opened.model, test, &places, &options, &mut bar)
}

/// How often features fire, as a picture: of each tenth of a power of ten, how many.
pub(super) fn density(path: &Path, title: &str, logs: &[Option<f64>]) -> Result<()> {
    const BINS: usize = 60;
    let mut counts = [0usize; BINS];
    for log in logs.iter().flatten() {
        let bin = ((log + 6.0) * 10.0).clamp(0.0, BINS as f64 - 1.0) as usize;
        if let Some(count) = counts.get_mut(bin) {
            *count += 1;
        }
    }
    let points = counts
        .iter()
        .enumerate()
        .map(|(bin, count)| (-6.0 + (bin as f64 + 0.5) / 10.0, *count as f64))
        .collect();
    let series = Series {
        name: "features".to_owned(),
        points,
    };
    let axes = Axes::new(
        title,
        "log10 of the share of tokens at which a feature fires",
        "features",
    );
    plot::line(path, &axes, &[series])
}

fn write_report(arguments: &Train, made: &Made) -> Result<()> {
    let plots = made.folder.join("plots");
    std::fs::create_dir_all(&plots).map_err(Error::io(&plots))?;
    plot::run_plots(&made.folder)?;
    if let Some(layer) = made.evaluation.dictionaries.first() {
        density(
            &plots.join("density.svg"),
            "How often features fire",
            &layer.log_frequency,
        )?;
    }
    let evaluation = json!(made.evaluation);
    let path = made.folder.join("evaluation.json");
    densely_core::fs::write(&path, format!("{evaluation:#}\n").as_bytes())?;
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let cells = |values: [String; 6]| values.to_vec();
    let e = &made.evaluation;
    let rows = e
        .dictionaries
        .iter()
        .map(|layer| {
            cells([
                format!("{:.2}", layer.l0),
                format!("{:.4}", layer.explained),
                format!("{:.4}", e.ce_replaced),
                format!("{:.4}", e.recovered),
                format!("{:.4}", e.kl),
                format!("{:.2} %", 100.0 * layer.silent),
            ])
        })
        .collect();
    let report = Report {
        title: format!(
            "{} of {}",
            arguments.kind.name(),
            model_name(arguments.source.path())
        ),
        facts: vec![
            fact("reads", made.settings.read.clone()),
            fact("gives", made.settings.write.clone()),
            fact("features", made.settings.dictionary.d_sae.to_string()),
            fact("tokens", made.tokens.to_string()),
            fact("seconds", format!("{:.0}", made.seconds)),
        ],
        sections: vec![Section {
            title: "In the layer's place".to_owned(),
            header: [
                "L0",
                "variance explained",
                "CE",
                "CE recovered",
                "KL",
                "silent",
            ]
            .map(str::to_owned)
            .to_vec(),
            rows,
            text: format!(
                "The model itself has a cross-entropy of {:.4}, and {:.4} with the layer ablated; {} predictions.",
                e.ce_clean, e.ce_ablated, e.predictions
            ),
        }],
        ..Report::default()
    };
    report::write(&made.folder, &report)?;
    Ok(())
}

fn print(arguments: &Train, made: &Made, common: &Common) {
    let peak = machine::peak_rss_mb();
    if common.json {
        let mut whole = json!(made.evaluation);
        whole["folder"] = json!(made.folder);
        whole["steps"] = json!(made.fitted.steps);
        whole["sparse_steps"] = json!(made.fitted.sparse);
        whole["dead"] = json!(made.fitted.dead);
        whole["seconds"] = json!(made.seconds);
        whole["peak_mb"] = json!(peak);
        println!("{whole}");
        return;
    }
    println!(
        "{}",
        evaluation_words(&made.evaluation, arguments.judging.ablation)
    );
    let (tokens, seconds) = made.harvested;
    let speed = if tokens > 0 {
        format!("activations at {:.0} tokens/s; ", tokens as f64 / seconds)
    } else {
        "activations from the store; ".to_owned()
    };
    let sparse = made.fitted.sparse.map_or_else(String::new, |share| {
        format!(
            ", {:.0} % of the steps on active features alone",
            100.0 * share
        )
    });
    println!(
        "{} steps over {} tokens, {:.1} % dead{sparse}; {speed}{:.0} s{}",
        made.fitted.steps,
        made.tokens,
        100.0 * made.fitted.dead,
        made.seconds,
        peak.map_or_else(String::new, |mb| format!(", {mb:.0} MB at most"))
    );
    println!("dictionary: {}", made.folder.join(DICTIONARY).display());
}

/// The study of a recipe.
pub(crate) fn study(arguments: &Train, common: &Common) -> Result<Found> {
    let all = make(arguments, common, &mut |_| ())?;
    let several = all.len() > 1;
    let mut found = Found {
        figures: BTreeMap::new(),
        report: String::new(),
        plots: Vec::new(),
        parameters: 0,
    };
    for made in &all {
        let e = &made.evaluation;
        let own = if several {
            format!("{}.", made.settings.write)
        } else {
            String::new()
        };
        let mut put = |name: &str, value: f64| {
            found.figures.insert(format!("{own}{name}"), value);
        };
        put("recovered", e.recovered);
        put("ce_replaced", e.ce_replaced);
        put("ce_clean", e.ce_clean);
        put("kl", e.kl);
        for layer in &e.dictionaries {
            put("l0", layer.l0);
            put("explained", layer.explained);
            put("silent", layer.silent);
        }
        let words = evaluation_words(e, arguments.judging.ablation);
        // Writing to a string cannot fail.
        let _ = writeln!(found.report, "{words}\n");
        found.plots.push(made.folder.join("plots/density.svg"));
        found.parameters = densely_core::nn::parameter_count(&made.fitted.vs);
    }
    Ok(found)
}
