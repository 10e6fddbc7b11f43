//! The study of localisation against editing: scores by hand, and a whole one on a tiny model, stopped and taken up again.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use densely_core::{Error, Result};
use densely_interp::edit::{KeyMode, Moments, same_bits};
use densely_interp::facts::{CounterFact, Fact, Rewrite, Target};
use densely_interp::localize::{
    Case, Event, LocalizeOptions, Method, Neighbour, Outcome, Point, Study, Variant, fractions,
    layers_of, localize, neighbourhood_score, noise_of, rewrite_score, summarise, write_report,
};
use densely_interp::noise::{Noise, NoiseKind};
use densely_interp::trace::{Restore, Trace};
use densely_lm::{Lm, LmConfig, Run, Tokenizer};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tch::Tensor;

use crate::edit::speaking;

fn near(found: f64, expected: f64) {
    assert!(
        (found - expected).abs() < 1e-12,
        "{found}, expected {expected}"
    );
}

#[test]
fn scores_are_what_the_formulas_say() {
    let raise = |before, after| rewrite_score(Variant::ErrorInjection, before, after);
    near(raise(0.0, 0.75), 0.75);
    near(raise(0.5, 1.0), 1.0);
    near(raise(0.5, 0.25), 2e-8);
    near(raise(0.3, 0.3), 2e-8);
    // A probability of 1 has nothing to win, and no division by 0.
    near(raise(1.0, 1.0), 2e-8);
    let erase = |before, after| rewrite_score(Variant::FactErasure, before, after);
    near(erase(0.8, 0.2), 0.75);
    near(erase(0.2, 0.8), 0.0);
    near(erase(0.0, 0.0), 0.0);
    near(neighbourhood_score(0.5, 0.5), 1.0);
    near(neighbourhood_score(0.5, 1.0), 0.0);
    near(neighbourhood_score(0.0, 1.0), 0.0);
    near(neighbourhood_score(0.9, 0.45), 0.5);
}

#[test]
fn the_fraction_is_the_best_of_the_tokens_from_the_subject_on() {
    let trace = |high: f64, low: f64| Trace {
        tokens: ["a", "b", "c"].map(str::to_owned).to_vec(),
        subject: 1..2,
        answer: "x".to_owned(),
        answer_ids: vec![1],
        high,
        low,
        low_of_draws: vec![low],
        window: 5,
        scores: BTreeMap::from([(
            Restore::Mlp,
            vec![vec![0.9, 0.9], vec![0.3, 0.0], vec![0.5, 0.05]],
        )]),
    };
    let found = fractions(&trace(0.9, 0.1));
    near(found[0], 0.5);
    near(found[1], 0.0);
    assert_eq!(fractions(&trace(0.1, 0.1)), [0.0, 0.0]);
}

#[test]
fn names_and_windows_are_those_of_the_paper() -> Result<()> {
    for variant in Variant::ALL {
        assert_eq!(variant.name().parse::<Variant>()?, variant);
    }
    for method in Method::ALL {
        assert_eq!(method.name().parse::<Method>()?, method);
    }
    let error = "fact".parse::<Variant>().expect_err("no such task");
    assert!(error.to_string().contains("fact-forcing"), "{error}");
    assert_eq!(Method::Memit.layers(10, 28), 8..13);
    assert_eq!(Method::Ft5.layers(0, 28), 0..3);
    assert_eq!(Method::Ft5.layers(27, 28), 25..28);
    assert_eq!(Method::Rome.layers(27, 28), 27..28);
    let sizes = json!({ "model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 1600, "n_layer": 48, "n_head": 25 });
    let config = LmConfig::from_hugging(&sizes)?;
    assert_eq!(noise_of(&config), NoiseKind::Fixed(0.1));
    let six = json!({ "model_type": "gptj", "vocab_size": 50400, "n_positions": 2048, "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64 });
    let six = noise_of(&LmConfig::from_hugging(&six)?);
    assert_eq!(six, NoiseKind::Fixed(0.094));
    let small = json!({ "model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12 });
    let small = noise_of(&LmConfig::from_hugging(&small)?);
    assert_eq!(small, NoiseKind::Measured(3.0));
    let layers = layers_of(&config);
    assert_eq!(
        layers,
        [0, 4, 8, 12, 16, 17, 20, 24, 28, 32, 36, 40, 44, 47]
    );
    Ok(())
}

fn fact(id: &str, subject: &str, relation: &str, attribute: Option<&str>) -> Result<Fact> {
    let prompt = format!("{subject} speaks");
    let made = Fact::new(id, prompt, subject, attribute.map(str::to_owned))?;
    Ok(Fact {
        relation: Some(relation.to_owned()),
        ..made
    })
}

#[test]
fn facts_alone_draw_on_their_relation() -> Result<()> {
    let facts = [
        fact("1", "Anne", "P1", Some("French"))?,
        fact("2", "Bob", "P1", Some("English"))?,
        fact("3", "Carl", "P1", Some("English"))?,
        fact("4", "Dora", "P2", Some("Welsh"))?,
        fact("5", "Emil", "P1", None)?,
    ];
    let cases = Case::of_facts(&facts, 7);
    assert_eq!(cases, Case::of_facts(&facts, 7));
    assert_eq!(cases.len(), 4);
    assert_eq!(cases[0].new.as_deref(), Some("English"));
    assert_eq!(cases[1].new.as_deref(), Some("French"));
    let neighbour = cases[0]
        .neighbour
        .as_ref()
        .expect("another of the relation");
    assert_eq!(neighbour.answer, "English");
    assert!(["Bob speaks", "Carl speaks"].contains(&neighbour.prompt.as_str()));
    // Nothing else is known of its relation, and nothing is made up.
    assert_eq!((&cases[3].new, &cases[3].neighbour), (&None, &None));
    assert!(cases.iter().all(|case| case.paraphrase.is_none()));

    let record = CounterFact {
        case_id: 3,
        requested_rewrite: Rewrite {
            prompt: "{} speaks".to_owned(),
            relation_id: None,
            target_new: Target {
                str: "Welsh".to_owned(),
                id: None,
            },
            target_true: Some(Target {
                str: "French".to_owned(),
                id: None,
            }),
            subject: "Anne".to_owned(),
        },
        paraphrase_prompts: vec!["The language of Anne is".to_owned(), "x".to_owned()],
        neighborhood_prompts: vec!["Jean speaks".to_owned()],
        attribute_prompts: Vec::new(),
        generation_prompts: Vec::new(),
    };
    let cases = Case::of_counterfact(&[record]);
    assert_eq!(cases[0].new.as_deref(), Some("Welsh"));
    assert_eq!(
        cases[0].paraphrase.as_deref(),
        Some("The language of Anne is")
    );
    let expected = Neighbour {
        prompt: "Jean speaks".to_owned(),
        answer: "French".to_owned(),
    };
    assert_eq!(cases[0].neighbour, Some(expected));
    Ok(())
}

/// The same draws by going through the list for each fact.
fn plainly_drawn(facts: &[Fact], seed: u64) -> Vec<(Option<String>, Option<Neighbour>)> {
    let mut all = Vec::new();
    for (place, fact) in facts.iter().enumerate() {
        let Some(attribute) = &fact.attribute else {
            continue;
        };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(place as u64);
        let related = |other: &&Fact| other.relation.is_some() && other.relation == fact.relation;
        let related: Vec<&Fact> = facts.iter().filter(related).collect();
        let mut others: Vec<&String> = related
            .iter()
            .filter_map(|other| other.attribute.as_ref())
            .filter(|other| *other != attribute)
            .collect();
        others.sort_unstable();
        others.dedup();
        let mut neighbours: Vec<Neighbour> = related
            .iter()
            .filter(|other| other.template == fact.template && other.subject != fact.subject)
            .filter_map(|other| {
                Some(Neighbour {
                    prompt: other.prompt.clone(),
                    answer: other.attribute.clone()?,
                })
            })
            .collect();
        if neighbours.iter().any(|one| one.answer == *attribute) {
            neighbours.retain(|one| one.answer == *attribute);
        }
        let mut drawn = |count: usize| (count > 0).then(|| rng.random_range(0..count));
        let new = drawn(others.len()).map(|number| others[number].clone());
        let neighbour = drawn(neighbours.len()).map(|number| neighbours[number].clone());
        all.push((new, neighbour));
    }
    all
}

#[test]
fn draws_are_those_of_going_through_the_list() -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut facts = Vec::new();
    for number in 0..300 {
        // Few of each, so that all of them meet: subjects with several facts, templates, relations of one fact, facts without any.
        let mut pick = |count: usize| rng.random_range(0..count);
        let subject = format!("subject {}", pick(40));
        let template = ["{} speaks", "the tongue of {} is"][pick(2)];
        let attribute = ["French", "Welsh", "Greek", "Dutch"].get(pick(6));
        let relation = ["P1", "P2", "P3"].get(pick(4));
        let rare = format!("rare {number}");
        let relation = if number % 50 == 7 {
            Some(rare)
        } else {
            relation.map(|name| (*name).to_owned())
        };
        let prompt = template.replacen("{}", &subject, 1);
        let attribute = attribute.map(|name| (*name).to_owned());
        let made = Fact::new(number.to_string(), prompt, subject, attribute)?;
        facts.push(Fact { relation, ..made });
    }
    for seed in [0, 1, 7] {
        let found: Vec<_> = Case::of_facts(&facts, seed)
            .into_iter()
            .map(|case| (case.new, case.neighbour))
            .collect();
        let expected = plainly_drawn(&facts, seed);
        let none = expected.iter().filter(|(new, _)| new.is_none()).count();
        assert!(none > 10 && none < 150, "{none}");
        assert_eq!(found, expected, "seed {seed}");
    }
    Ok(())
}

#[test]
fn a_long_list_of_one_relation_is_drawn_from_at_once() -> Result<()> {
    // Going through the list for each would take minutes.
    let facts = (0..60_000)
        .map(|number| {
            let subject = format!("House {}", number / 2);
            let attribute = format!("Street {}", number % 100);
            fact(
                &number.to_string(),
                &subject,
                "P1",
                Some(attribute.as_str()),
            )
        })
        .collect::<Result<Vec<_>>>()?;
    for case in Case::of_facts(&facts, 3) {
        let neighbour = case.neighbour.expect("many have the same answer");
        assert_eq!(Some(&neighbour.answer), case.fact.attribute.as_ref());
        assert_ne!(neighbour.prompt, case.fact.prompt);
        assert_ne!(case.new, case.fact.attribute);
    }
    Ok(())
}

/// Facts that a model of random weights answers: the answer is its own likeliest token, where that is a word.
fn known(model: &Lm, tokenizer: &Tokenizer, count: usize) -> Result<Vec<Case>> {
    let mut cases: Vec<Case> = Vec::new();
    for number in 0..400 {
        let subject = format!("House {number}");
        let prompt = format!("{subject} stands in");
        let ids = tokenizer.encode(&prompt)?;
        let row = Tensor::from_slice(&ids).unsqueeze(0);
        let logits = model.run(&row, &mut Run::new().last_only())?;
        let id = logits.argmax(None, false).int64_value(&[]);
        let word = tokenizer.decode(&[id])?;
        let is_word = word.starts_with(' ') && word.trim().chars().all(char::is_alphabetic);
        if !is_word || word.len() < 3 || tokenizer.encode(&word)? != [id] {
            continue;
        }
        let answer = word.trim().to_owned();
        let fact = Fact::new(
            number.to_string(),
            prompt,
            subject.as_str(),
            Some(answer.clone()),
        )?;
        cases.push(Case {
            fact,
            new: (cases.len() != 1).then(|| "Rome".to_owned()),
            paraphrase: Some(format!("Where is {subject}? In")),
            neighbour: Some(Neighbour {
                prompt: "The Louvre stands in".to_owned(),
                answer,
            }),
        });
        if cases.len() == count {
            return Ok(cases);
        }
    }
    panic!(
        "the model of random weights says too few words: {}",
        cases.len()
    );
}

fn options(model: &Lm) -> LocalizeOptions {
    let mut options = LocalizeOptions::new(model.config());
    options.layers = vec![0, 2];
    options.methods = vec![Method::Ft1, Method::Rome];
    options.variants = vec![
        Variant::ErrorInjection,
        Variant::TracingReversal,
        Variant::FactErasure,
        Variant::FactForcing,
    ];
    options.trace.samples = 3;
    options.min_probability = 0.0;
    "identity".clone_into(&mut options.moments);
    options
}

/// Makes a study in a folder; the outcome and how many edits were made.
fn study(
    model: &Lm,
    tokenizer: &Tokenizer,
    cases: &[Case],
    options: &LocalizeOptions,
    folder: &Path,
    resume: bool,
) -> Result<(Outcome, usize)> {
    let noise = Noise::fixed(1.0)?;
    let width = model.config().d_mlp;
    let mut moments = |_: usize| -> Result<Rc<Moments>> { Ok(Rc::new(Moments::identity(width)?)) };
    let mut edits = 0;
    let outcome = localize(
        &mut Study {
            model,
            tokenizer,
            cases,
            noise: &noise,
            moments: &mut moments,
            folder,
        },
        options,
        resume,
        &mut |event| edits += usize::from(matches!(event, Event::Edited(..))),
    )?;
    Ok((outcome, edits))
}

#[test]
fn a_study_that_was_stopped_ends_in_the_same_bytes() -> Result<()> {
    let (model, _vs, tokenizer) = speaking()?;
    let cases = known(&model, &tokenizer, 3)?;
    let options = options(&model);
    let before: Vec<(String, Tensor)> = model
        .parameters()
        .into_iter()
        .map(|(name, xs)| (name, tch::no_grad(|| xs.copy())))
        .collect();
    let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
    let go = |options: &LocalizeOptions, resume: bool| {
        study(&model, &tokenizer, &cases, options, folder.path(), resume)
    };
    let (outcome, edits) = go(&options, false)?;
    assert!(outcome.skipped.is_empty(), "{:?}", outcome.skipped);
    // Two methods and layers; four tasks of three facts, of which one has no new answer.
    assert_eq!((outcome.edited, edits, outcome.points.len()), (3, 44, 44));
    for (name, old) in &before {
        assert!(same_bits(&model.parameter(name)?, old)?, "{name}");
    }
    check_points(&outcome.points);

    let path = folder.path().join("edits.csv");
    let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
    let error = go(&options, false).expect_err("the folder is used");
    assert!(error.to_string().contains("--resume"), "{error}");
    // Torn within a row.
    let cut = bytes.len() / 2;
    std::fs::write(&path, &bytes[..cut]).map_err(Error::io(&path))?;
    let (again, edits) = go(&options, true)?;
    assert!(edits > 10 && edits < 34, "{edits}");
    assert_eq!(again.points, outcome.points);
    assert_eq!(std::fs::read(&path).map_err(Error::io(&path))?, bytes);
    let (_, edits) = go(&options, true)?;
    assert_eq!(edits, 0);

    let mut other = options.clone();
    other.rome_clamp = 1.0;
    let error = go(&other, true).expect_err("another clamp");
    assert!(error.to_string().contains("rome_clamp was"), "{error}");
    // Layers may be added, and fewer asked for.
    let mut more = options.clone();
    more.layers = vec![1];
    more.methods = vec![Method::Rome];
    more.variants = vec![Variant::FactErasure];
    let (added, edits) = go(&more, true)?;
    assert_eq!((edits, added.points.len()), (3, 3));
    assert!(added.points.iter().all(|point| point.layer == 1));

    let summary = summarise(&outcome.points)?;
    assert_eq!(summary.pairs.len(), 8);
    for pair in &summary.pairs {
        assert_eq!((pair.failed, pair.layers.len()), (0, 2));
        assert!(pair.means.iter().all(Option::is_some));
    }
    assert!(
        summary.verdict().contains("The rule"),
        "{}",
        summary.verdict()
    );
    let about = [("model".to_owned(), "random".to_owned())];
    write_report(folder.path(), &about, &outcome, &summary)?;
    let report = std::fs::read_to_string(folder.path().join("report.md"));
    let report = report.map_err(Error::io(folder.path()))?;
    assert!(report.contains("| fact-erasure | rome | 6 |"), "{report}");
    assert!(!report.contains("Not measured"), "{report}");
    assert!(folder.path().join("plots/fact-forcing.svg").is_file());
    assert!(folder.path().join("regression.json").is_file());
    Ok(())
}

fn check_points(points: &[Point]) {
    for point in points {
        assert_eq!(point.note, "", "{point:?}");
        let post = point.post.expect("a probability");
        near(
            point.rewrite.expect("a score"),
            rewrite_score(point.variant, point.pre, post),
        );
        assert!((0.0..=1.0 + 1e-9).contains(&post), "{point:?}");
        assert!(point.fraction >= 0.0 && point.high > 0.0, "{point:?}");
        assert!(point.neighbourhood.is_some() && point.paraphrase.is_some());
        // Noise is on the subject where the fact is forced, so that it begins with the corrupted run.
        match point.variant {
            Variant::FactForcing => assert!((point.pre - point.low).abs() < 1e-4 * point.low),
            Variant::FactErasure => assert!((point.pre - point.high).abs() < 1e-4 * point.high),
            _ => {}
        }
    }
}

#[test]
fn a_fact_that_was_edited_keeps_what_it_is_edited_to_and_judged_by() -> Result<()> {
    let (model, _vs, tokenizer) = speaking()?;
    let cases = known(&model, &tokenizer, 3)?;
    let mut one = options(&model);
    one.variants = vec![Variant::ErrorInjection];
    one.methods = vec![Method::Ft1];
    one.layers = vec![0];
    let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
    let go = |cases: &[Case], options: &LocalizeOptions| {
        study(&model, &tokenizer, cases, options, folder.path(), true)
    };
    let read = |name: &str| {
        let path = folder.path().join(name);
        std::fs::read_to_string(&path).map_err(Error::io(&path))
    };
    let refused = |cases: &[Case], options: &LocalizeOptions, parts: &[&str]| {
        let error = go(cases, options).expect_err("something differs");
        for part in parts {
            assert!(error.to_string().contains(part), "{error}");
        }
    };
    assert_eq!(go(&cases[..1], &one)?.1, 1);
    let edits = read("edits.csv")?;

    let mut answer = cases.clone();
    answer[0].new = Some("Berlin".to_owned());
    refused(&answer, &one, &["new answer", "\"Rome\"", "\"Berlin\""]);
    let mut neighbour = cases.clone();
    neighbour[0].neighbour = None;
    refused(&neighbour, &one, &["neighbour", "The Louvre", "none"]);
    assert_eq!(read("edits.csv")?, edits);

    // Without that file the rows themselves still hold their targets.
    let path = folder.path().join("cases.jsonl");
    std::fs::remove_file(&path).map_err(Error::io(&path))?;
    let mut two = one.clone();
    two.layers = vec![0, 1];
    refused(
        &answer[..1],
        &two,
        &["error-injection", "\"Rome\"", "\"Berlin\""],
    );
    assert_eq!(read("edits.csv")?, edits);

    // Facts may be added; the second has no new answer.
    assert_eq!(go(&cases, &two)?.1, 3);
    assert!(read("edits.csv")?.starts_with(&edits));
    assert_eq!(read("cases.jsonl")?.lines().count(), 3);
    Ok(())
}

#[test]
fn methods_are_added_with_settings_that_only_they_read() -> Result<()> {
    let (model, _vs, tokenizer) = speaking()?;
    let cases = known(&model, &tokenizer, 1)?;
    let mut options = options(&model);
    options.variants = vec![Variant::FactErasure];
    options.methods = vec![Method::Ft1];
    options.layers = vec![1];
    let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
    let go =
        |options: &LocalizeOptions| study(&model, &tokenizer, &cases, options, folder.path(), true);
    assert_eq!(go(&options)?.1, 1);
    options.methods = vec![Method::Ft1, Method::Rome];
    options.key = KeyMode::Reference;
    assert_eq!(go(&options)?.1, 1);
    // Now there are edits by this key.
    options.key = KeyMode::Averaged;
    let error = go(&options).expect_err("another key").to_string();
    assert!(error.contains("key"), "{error}");
    // What is not read may differ.
    options.methods = vec![Method::Ft1];
    assert_eq!(go(&options)?.1, 0);
    Ok(())
}

#[test]
fn facts_that_the_model_does_not_know_are_left_out() -> Result<()> {
    let (model, _vs, tokenizer) = speaking()?;
    let mut cases = known(&model, &tokenizer, 2)?;
    cases[0].fact.attribute = Some("nowhere at all".to_owned());
    let mut options = options(&model);
    options.variants = vec![Variant::FactErasure];
    options.methods = vec![Method::Ft5];
    options.layers = vec![1];
    let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
    let (outcome, edits) = study(&model, &tokenizer, &cases, &options, folder.path(), false)?;
    assert_eq!((outcome.edited, edits), (1, 1));
    assert_eq!(outcome.skipped[0].0, cases[0].fact.id);
    assert!(outcome.skipped[0].1.contains("the model gives"));

    let folder = tempfile::tempdir().map_err(Error::io("tempdir"))?;
    options.min_probability = 0.999;
    let (outcome, edits) = study(&model, &tokenizer, &cases, &options, folder.path(), false)?;
    assert_eq!((outcome.edited, edits, outcome.skipped.len()), (0, 0, 2));
    assert!(summarise(&outcome.points).is_err());
    options.layers = vec![99];
    let refused = study(&model, &tokenizer, &cases, &options, folder.path(), true);
    assert!(refused.is_err());
    Ok(())
}
