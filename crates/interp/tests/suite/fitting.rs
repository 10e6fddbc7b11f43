//! Texts, activations, training and judging of dictionaries on a small model.

mod activations;

use std::fs;
use std::path::Path;

use densely_core::weights;
use densely_core::{Device, Error, Result, seeded};
use densely_interp::activations::{ActivationOptions, Activations};
use densely_interp::corpus::{Corpus, CorpusOptions, Documents};
use densely_interp::dictionary::evaluate::{Ablation, EvaluateOptions, InPlace, evaluate};
use densely_interp::dictionary::examples::{Survey, Surveyed, logit_effects};
use densely_interp::dictionary::fit::{Event, FitSettings, Fitted, Resample, Style, fit, open};
use densely_interp::dictionary::folder::Metadata;
use densely_interp::dictionary::{Activation, Dead, ErrorForm, Sparsity};
use densely_lm::{Lm, LmConfig, Run, Tokenizer};
use densely_testkit::{assert_bits, assert_near};
use densely_train::optim::OptimConfig;
use densely_train::run::{FitOptions, ResumeFrom};
use serde_json::json;
use tch::nn::VarStore;
use tch::{Kind, Tensor};

const READ: &str = "blocks.1.ln2.hook_normalized";
const WRITE: &str = "blocks.1.hook_mlp_out";
const CONTEXT: usize = 16;

/// A small model of the GPT-2 tokeniser's vocabulary.
struct Small {
    model: Lm,
    _vs: VarStore,
    tokenizer: Tokenizer,
}

fn small() -> Result<Small> {
    let sizes = json!({
        "model_type": "gpt2", "vocab_size": 50_257, "n_positions": 32, "n_embd": 24, "n_layer": 3, "n_head": 2,
        "initializer_range": 0.2,
    });
    let vs = VarStore::new(tch::Device::Cpu);
    let model = seeded(4, || Lm::new(LmConfig::from_hugging(&sizes)?, &vs.root()))?;
    Ok(Small {
        model,
        _vs: vs,
        tokenizer: Tokenizer::gpt2()?,
    })
}

/// Words that come again and again, in an order that does not.
fn text(words: usize) -> String {
    const WORDS: [&str; 9] = [
        "river", "stone", "the", "walks", "under", "seven", "bridges", "and", "sings",
    ];
    let mut state = 12345u64;
    let mut made = String::new();
    for _ in 0..words {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        made.push_str(WORDS[(state >> 33) as usize % WORDS.len()]);
        made.push(' ');
    }
    made
}

fn options() -> CorpusOptions {
    CorpusOptions {
        context: CONTEXT,
        ..CorpusOptions::default()
    }
}

fn corpora(small: &Small, folder: &Path) -> Result<(Corpus, Corpus)> {
    corpora_of(small, folder, 2400)
}

fn corpora_of(small: &Small, folder: &Path, words: usize) -> Result<(Corpus, Corpus)> {
    let path = folder.join("words.txt");
    fs::write(&path, text(words)).expect("a file");
    let documents = Documents::read(&[path], &small.tokenizer, &options())?;
    let (train, test, _) = documents.split(0.1)?;
    Ok((
        train.windows(&small.tokenizer, &options())?,
        test.windows(&small.tokenizer, &options())?,
    ))
}

fn points(buffer: usize) -> ActivationOptions {
    ActivationOptions {
        buffer,
        rows: 5,
        seed: 3,
        ..ActivationOptions::new(&[READ, WRITE])
    }
}

fn settings(style: Style, sae: bool) -> FitSettings {
    let read = if sae { WRITE } else { READ };
    let mut settings = FitSettings::new(style, read, WRITE, (24, 24), 192);
    settings.batch = 64;
    settings.schedule.warmup_steps = 3;
    settings.sparsity_warmup = settings.sparsity_warmup.min(5);
    // Some features die in so short a training.
    settings.dead_after = 500;
    if let OptimConfig::Adam(adam) = &mut settings.optim {
        adam.lr = 2e-3;
    }
    settings
}

/// What is trained in a folder of a run.
struct Training<'a> {
    small: &'a Small,
    corpora: &'a (Corpus, Corpus),
    store: Option<&'a Path>,
}

impl Training<'_> {
    fn fit(
        &self,
        settings: &FitSettings,
        folder: &Path,
        resume: bool,
        stop: Option<u64>,
    ) -> Result<Fitted> {
        let (train, test) = self.corpora;
        let train = Activations::new(&self.small.model, train, points(300), self.store)?;
        let test = Activations::new(&self.small.model, test, points(300), None)?;
        let options = FitOptions {
            folder,
            table: Path::new("words.txt"),
            seed: 9,
            device: tch::Device::Cpu,
            resume: resume.then_some(ResumeFrom::Last),
        };
        let metadata = Metadata {
            hook_name: Some(settings.read.clone()),
            hook_name_out: Some(settings.write.clone()),
            ..Metadata::default()
        };
        fit(
            settings,
            &train,
            Some(&test),
            &metadata,
            &options,
            &mut |event| {
                if let (Event::Step { step, .. }, Some(stop)) = (event, stop)
                    && *step == stop
                {
                    return Err(Error::config("the test", "ends here"));
                }
                Ok(())
            },
        )
    }
}

#[test]
fn styles_learn_and_their_folders_open() -> Result<()> {
    let small = small()?;
    let scratch = tempfile::tempdir().expect("a folder");
    let corpora = corpora(&small, scratch.path())?;
    let training = Training {
        small: &small,
        corpora: &corpora,
        store: None,
    };
    let mut batch = settings(Style::Sparsify, false);
    batch.dictionary.activation = Activation::BatchTopK {
        k: 8.0,
        rescale: true,
    };
    batch.dictionary.skip = true;
    let mut few = settings(Style::Sparsify, false);
    few.dictionary.activation = Activation::TopK {
        k: 8,
        rescale: false,
    };
    for (name, mut settings) in [
        ("sparsify", few),
        ("batch", batch),
        ("paper", settings(Style::Paper, false)),
        ("sae", settings(Style::SaeLens, true)),
        ("unit", settings(Style::Paper, true)),
    ] {
        // The threshold that takes a batch's place follows by a hundredth of the way in a step, and the decoder begins at 0.
        settings.epochs = if name == "batch" { 16 } else { 2 };
        let folder = scratch.path().join(name);
        let fitted = training.fit(&settings, &folder, false, None)?;
        let judged = fitted.judged.expect("texts to judge by");
        assert!(judged.fvu < 0.6, "{name}: {judged:?}");
        let opened = open(&folder, Device::Cpu)?;
        assert_eq!(
            opened.metadata.hook_name.as_deref(),
            Some(settings.read.as_str())
        );
        let x = seeded(2, || {
            Tensor::randn([40, 24], (Kind::Float, tch::Device::Cpu))
        });
        let ys = |dictionary: &densely_interp::dictionary::Dictionary| -> Result<Tensor> {
            Ok(tch::no_grad(|| dictionary.forward(&x))?.reconstruction)
        };
        assert_near(&ys(&opened.dictionary)?, &ys(&fitted.dictionary)?, 1e-5);
        if settings.unit_rows {
            let norms = fitted
                .dictionary
                .weights()
                .1
                .norm_scalaropt_dim(2.0, [-1], false);
            // Of the last step: the rows are brought back before the next one.
            assert!((norms - 1.0).abs().max().double_value(&[]) < 0.05, "{name}");
        }
    }
    Ok(())
}

/// Steps of a run folder's newest checkpoint.
fn steps_kept(folder: &Path) -> u64 {
    let text = fs::read_to_string(folder.join("last/state.json")).expect("a checkpoint");
    let state: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    state["state"]["progress"]["step"]
        .as_u64()
        .expect("a number")
}

#[test]
fn a_training_goes_on_with_its_own_texts_alone() -> Result<()> {
    let small = small()?;
    let scratch = tempfile::tempdir().expect("a folder");
    let own = corpora(&small, scratch.path())?;
    let other = corpora_of(&small, scratch.path(), 2300)?;
    let on = |corpora| Training {
        small: &small,
        corpora,
        store: None,
    };
    let (settings, run) = (settings(Style::Paper, false), scratch.path().join("run"));
    let stopped = on(&own).fit(&settings, &run, false, Some(5));
    assert!(stopped.is_err() && steps_kept(&run) == 5);
    let error = on(&other).fit(&settings, &run, true, None);
    let error = error.expect_err("other texts").to_string();
    assert!(error.contains("trained_on"), "{error}");
    assert_eq!(steps_kept(&run), 5);
    Ok(())
}

#[test]
fn an_interrupted_training_ends_in_the_same_bits() -> Result<()> {
    let small = small()?;
    let scratch = tempfile::tempdir().expect("a folder");
    let corpora = corpora(&small, scratch.path())?;
    let store = scratch.path().join("store");
    let mut ghost = settings(Style::Paper, false);
    ghost.resample = Some(Resample {
        every: 20,
        factor: 0.1,
        recovery: 10,
    });
    let mut batch = settings(Style::Sparsify, false);
    batch.dictionary.activation = Activation::BatchTopK {
        k: 8.0,
        rescale: true,
    };
    for (name, settings, store) in [
        ("ghost", ghost, None),
        ("batch", batch, Some(store.as_path())),
        ("lens", settings(Style::SaeLens, true), None),
    ] {
        let training = Training {
            small: &small,
            corpora: &corpora,
            store,
        };
        let whole = scratch.path().join(format!("{name}-whole"));
        let unbroken = training.fit(&settings, &whole, false, None)?;
        assert!(unbroken.steps > 25, "{}", unbroken.steps);
        let parts = scratch.path().join(format!("{name}-parts"));
        for stop in [1, 13, 24] {
            let stopped = training.fit(&settings, &parts, stop > 1, Some(stop));
            let error = stopped.expect_err("an end").to_string();
            assert!(error.contains("ends here"), "{error}");
            // What was done is there, and is gone on with: not a run that starts anew.
            assert_eq!(steps_kept(&parts), stop, "{name}");
        }
        let resumed = training.fit(&settings, &parts, true, None)?;
        assert_eq!(resumed.steps, unbroken.steps);
        let (ours, theirs) = (weights::named(&resumed.vs), weights::named(&unbroken.vs));
        for (key, xs) in ours {
            assert_bits(&xs.contiguous(), &theirs[&key].contiguous());
        }
        let log = |folder: &Path| fs::read_to_string(folder.join("metrics.jsonl")).expect("a log");
        assert_eq!(log(&parts), log(&whole), "{name}");
    }
    Ok(())
}

#[test]
fn dead_features_are_woken() -> Result<()> {
    let small = small()?;
    let scratch = tempfile::tempdir().expect("a folder");
    let corpora = corpora(&small, scratch.path())?;
    let training = Training {
        small: &small,
        corpora: &corpora,
        store: None,
    };
    let mut with = settings(Style::SaeLens, false);
    with.epochs = 3;
    with.dictionary.d_sae = 400;
    with.dictionary.activation = Activation::TopK {
        k: 2,
        rescale: false,
    };
    with.dictionary.objective.sparsity = Sparsity::None {};
    with.dictionary.objective.dead = Dead::AuxK { coefficient: 1.0 };
    let mut without = with.clone();
    without.dictionary.objective.dead = Dead::Nothing {};
    let woken = training.fit(&with, &scratch.path().join("with"), false, None)?;
    let left = training.fit(&without, &scratch.path().join("without"), false, None)?;
    assert!(
        woken.dead < left.dead,
        "{} dead with their term, {} without",
        woken.dead,
        left.dead
    );
    Ok(())
}

#[test]
fn a_planted_dictionary_is_found() -> Result<()> {
    // Rows are sparse sums of 32 unit directions of 16 dimensions.
    let (atoms, x) = seeded(5, || {
        let options = (Kind::Float, tch::Device::Cpu);
        let atoms = Tensor::randn([32, 16], options);
        let atoms = &atoms / atoms.norm_scalaropt_dim(2.0, [-1], true);
        let on = Tensor::rand([20_000, 32], options)
            .lt(0.06)
            .to_kind(Kind::Float);
        let much = Tensor::rand([20_000, 32], options) + 0.5;
        (atoms.shallow_clone(), (on * much).matmul(&atoms))
    });
    let mut settings = FitSettings::new(Style::Paper, WRITE, WRITE, (16, 16), 64);
    // Some rows are zeros, which have no norm to divide by.
    settings.dictionary.objective.error = ErrorForm::Squared;
    let vs = VarStore::new(tch::Device::Cpu);
    let mut dictionary = seeded(1, || settings.dictionary.build(&vs.root()))?;
    let adam = OptimConfig::Adam(densely_train::optim::AdamConfig {
        lr: 3e-3,
        ..Default::default()
    });
    let mut optimizer = adam.build(&vs, &[])?;
    // So dear that a direction of its own is cheaper than a sum of several.
    let price = 0.3;
    let mut first = None;
    let mut last = 0.0;
    for step in 0..1200 {
        dictionary.unit_rows()?;
        optimizer.zero_grad()?;
        let rows = x.narrow(0, step % 40 * 500, 500);
        let (coded, losses) = dictionary.losses(&rows, &rows, None, 0.0)?;
        let sparsity = coded.features.dense()?.sum(Kind::Float) * (price / 500.0);
        let total = &losses.error + sparsity;
        total.backward();
        dictionary.remove_parallel_gradient()?;
        optimizer.step()?;
        last = total.double_value(&[]);
        first.get_or_insert(last);
    }
    assert!(last < 0.5 * first.unwrap_or(0.0), "{first:?} {last}");
    let (_, decoder) = dictionary.weights();
    let rows = decoder / decoder.norm_scalaropt_dim(2.0, [-1], true);
    let best = atoms.matmul(&rows.tr()).amax([1].as_slice(), false);
    let found = best.gt(0.9).sum(Kind::Int64).int64_value(&[]);
    assert!(found >= 26, "{found} of 32 directions are found");
    Ok(())
}

#[test]
fn replacing_nothing_loses_nothing_and_the_model_stays() -> Result<()> {
    let small = small()?;
    let scratch = tempfile::tempdir().expect("a folder");
    let (_, test) = corpora(&small, scratch.path())?;
    let before: Vec<Tensor> = small
        .model
        .parameters()
        .into_values()
        .map(|xs| xs.copy())
        .collect();
    // A skip of the identity and features of nothing give back what an autoencoder reads.
    let mut config = FitSettings::new(Style::Sparsify, WRITE, WRITE, (24, 24), 30).dictionary;
    config.skip = true;
    let vs = VarStore::new(tch::Device::Cpu);
    let dictionary = seeded(0, || config.build(&vs.root()))?;
    tch::no_grad(|| {
        for (name, mut xs) in weights::named(&vs) {
            let value = if name == "W_skip" {
                Tensor::eye(24, (Kind::Float, tch::Device::Cpu))
            } else {
                xs.zeros_like()
            };
            xs.copy_(&value);
        }
    });
    let place = InPlace {
        dictionary: &dictionary,
        read: WRITE,
        write: WRITE,
    };
    let quiet = &mut |_, _| Ok(());
    let found = evaluate(
        &small.model,
        &test,
        &[place],
        &EvaluateOptions::default(),
        quiet,
    )?;
    assert!(
        (found.ce_replaced - found.ce_clean).abs() < 1e-5,
        "{found:?}"
    );
    assert!(
        found.kl.abs() < 1e-5 && (found.recovered - 1.0).abs() < 1e-3,
        "{found:?}"
    );
    assert!((found.dictionaries[0].explained - 1.0).abs() < 1e-6);
    assert!(found.dictionaries[0].l0 == 0.0 && found.dictionaries[0].silent == 1.0);
    // Zeros in its place are what zeros are.
    tch::no_grad(|| {
        let _ = weights::named(&vs)["W_skip"].shallow_clone().zero_();
    });
    let zeros = evaluate(
        &small.model,
        &test,
        &[place],
        &EvaluateOptions::default(),
        quiet,
    )?;
    assert!(
        (zeros.ce_replaced - zeros.ce_ablated).abs() < 1e-6,
        "{zeros:?}"
    );
    let mean = EvaluateOptions {
        ablation: Ablation::Mean,
        ..EvaluateOptions::default()
    };
    let mean = evaluate(&small.model, &test, &[place], &mean, quiet)?;
    assert!(
        (mean.ce_ablated - zeros.ce_ablated).abs() > 1e-6,
        "{mean:?}"
    );
    assert!((mean.ce_clean - found.ce_clean).abs() < 1e-9);
    for (ours, theirs) in small.model.parameters().into_values().zip(&before) {
        assert_bits(&ours, theirs);
    }
    Ok(())
}

#[test]
fn cross_entropies_are_the_models_own() -> Result<()> {
    let small = small()?;
    let scratch = tempfile::tempdir().expect("a folder");
    let (_, test) = corpora(&small, scratch.path())?;
    let settings = settings(Style::Sparsify, false);
    let vs = VarStore::new(tch::Device::Cpu);
    let dictionary = seeded(0, || settings.dictionary.build(&vs.root()))?;
    let place = InPlace {
        dictionary: &dictionary,
        read: READ,
        write: WRITE,
    };
    let options = EvaluateOptions {
        keep_first: true,
        ..EvaluateOptions::default()
    };
    let found = evaluate(&small.model, &test, &[place], &options, &mut |_, _| Ok(()))?;
    // By hand: the decoder starts at zeros, and gives its bias, zeros too.
    let all: Vec<usize> = (0..test.windows()).collect();
    let ids = test.ids(&all)?;
    let loss = |logits: &Tensor| {
        let logits = logits.narrow(1, 0, CONTEXT as i64 - 1).flatten(0, 1);
        logits
            .cross_entropy_for_logits(&ids.narrow(1, 1, CONTEXT as i64 - 1).flatten(0, 1))
            .double_value(&[])
    };
    let clean = loss(&small.model.forward(&ids)?);
    let mut run = Run::new().hook(WRITE, |y| Ok(Some(y.zeros_like())));
    let zero = loss(&small.model.run(&ids, &mut run)?);
    assert!((found.ce_clean - clean).abs() < 1e-5, "{found:?} {clean}");
    assert!((found.ce_replaced - zero).abs() < 1e-5, "{found:?} {zero}");
    assert!((found.ce_ablated - zero).abs() < 1e-5, "{found:?} {zero}");
    Ok(())
}

#[test]
fn examples_are_where_features_fire_most() -> Result<()> {
    let small = small()?;
    let scratch = tempfile::tempdir().expect("a folder");
    let (_, test) = corpora(&small, scratch.path())?;
    let config = settings(Style::Sparsify, false).dictionary;
    let vs = VarStore::new(tch::Device::Cpu);
    let dictionary = seeded(0, || config.build(&vs.root()))?;
    let surveyed = Surveyed {
        model: &small.model,
        dictionary: &dictionary,
        read: READ,
        corpus: &test,
    };
    let survey = Survey::new(&surveyed, 3, &mut |_, _| Ok(()))?;
    let all: Vec<usize> = (0..test.windows()).collect();
    let mut run = Run::new().cache(&[READ]);
    let _ = small.model.run(&test.ids(&all)?, &mut run)?;
    let cache = run.take_cache();
    let xs = cache.get(READ)?.flatten(0, 1);
    let features = tch::no_grad(|| dictionary.encode(&xs))?.dense()?;
    let features = features.reshape([all.len() as i64, CONTEXT as i64, -1]);
    let real = features.narrow(1, 1, CONTEXT as i64 - 1);
    let most = real.amax([0, 1].as_slice(), false);
    let counts = real
        .gt(0.0)
        .sum_dim_intlist([0, 1].as_slice(), false, Kind::Int64);
    for feature in 0..192 {
        let count = counts.int64_value(&[feature]) as u64;
        assert_eq!(survey.counts[feature as usize], count, "{feature}");
        let Some(top) = survey.tops[feature as usize].first() else {
            assert_eq!(count, 0);
            continue;
        };
        let expected = most.double_value(&[feature]);
        assert!((f64::from(top.value) - expected).abs() < 1e-5);
    }
    let shown: Vec<usize> = (0..192).filter(|f| survey.counts[*f] > 0).take(4).collect();
    let texts = survey.examples(&surveyed, &small.tokenizer, &shown, 4)?;
    for (feature, examples) in texts {
        assert_eq!(examples.len(), survey.tops[feature].len());
        for (example, top) in examples.iter().zip(&survey.tops[feature]) {
            assert_eq!(example.tokens.len(), example.activations.len());
            assert!((example.activations[example.peak] - top.value).abs() < 1e-5);
        }
    }
    let (up, down) = logit_effects(&small.model, &small.tokenizer, &dictionary, 3, 5)?;
    assert_eq!((up.len(), down.len()), (5, 5));
    assert!(logit_effects(&small.model, &small.tokenizer, &dictionary, 192, 5).is_err());
    Ok(())
}
