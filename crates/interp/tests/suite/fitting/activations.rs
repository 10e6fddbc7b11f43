//! Texts as windows, and a model's activations over them.

use std::fs;
use std::path::PathBuf;

use densely_core::{Error, Result};
use densely_interp::activations::{ActivationOptions, Activations, layer_of};
use densely_interp::corpus::{CorpusOptions, Documents};
use densely_lm::Run;
use densely_testkit::{assert_bits, assert_near};
use serde_json::json;
use tch::Tensor;

use super::{CONTEXT, READ, WRITE, corpora, options, points, small, text};

#[test]
fn documents_are_split_without_leakage() -> Result<()> {
    let small = small()?;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("many.jsonl");
    let lines: Vec<String> = (0..20)
        .map(|i| {
            json!({ "text": format!("document {} of several, {}", i % 17, text(i % 17)) })
                .to_string()
        })
        .collect();
    fs::write(&path, lines.join("\n")).expect("a file");
    let documents = Documents::read(&[path], &small.tokenizer, &options())?;
    assert_eq!(documents.len(), 20);
    let (train, test, repeated) = documents.split(0.3)?;
    // The last three are those of the start again.
    assert_eq!(repeated, 3);
    assert_eq!(train.len() + test.len(), 17);
    let (train, test) = (
        train.windows(&small.tokenizer, &options())?,
        test.windows(&small.tokenizer, &options())?,
    );
    assert_eq!(train.tokens(), train.windows() * (CONTEXT - 1));
    for window in 0..test.windows() {
        assert_eq!(test.window(window).len(), CONTEXT);
        assert_eq!(
            i64::from(test.window(window)[0]),
            small.tokenizer.bos().unwrap_or(0)
        );
        for other in 0..train.windows() {
            assert_ne!(test.window(window), train.window(other));
        }
    }
    Ok(())
}

#[test]
fn texts_of_all_kinds_are_read() -> Result<()> {
    let small = small()?;
    let folder = tempfile::tempdir().expect("a folder");
    let read = |name: &str, bytes: &[u8], field: &str| -> Result<usize> {
        let path = folder.path().join(name);
        fs::write(&path, bytes).expect("a file");
        let options = CorpusOptions {
            field: field.to_owned(),
            ..options()
        };
        Ok(Documents::read(&[path], &small.tokenizer, &options)?.len())
    };
    assert_eq!(
        read("a.txt", b"one<|endoftext|>two<|endoftext|>", "text")?,
        2
    );
    assert_eq!(
        read(
            "a.jsonl",
            b"{\"body\": \"one\"}\n\n{\"body\": \"two\"}\n",
            "body"
        )?,
        2
    );
    let refused = |name: &str, bytes: &[u8], words: &str| {
        let message = match read(name, bytes, "text") {
            Ok(count) => panic!("{name} is taken, {count} documents"),
            Err(error) => error.to_string(),
        };
        assert!(message.contains(words), "{name}: {message}");
    };
    refused("b.jsonl", b"{\"text\": \"one\"}\n{\"text\": 2}\n", "2");
    refused("c.jsonl", b"{\"text\": \"one\"}\nnothing\n", "is no JSON");
    refused("d.txt", b"\xff\xfe", "UTF-8");
    refused("e.txt", b"", "no token");
    refused("f.parquet", b"PAR1", "f.parquet");
    let missing = Documents::read(
        &[PathBuf::from("no/such.txt")],
        &small.tokenizer,
        &options(),
    );
    assert!(matches!(missing, Err(Error::Io { .. })), "{missing:?}");
    Ok(())
}

#[test]
fn activations_are_the_models_in_another_order() -> Result<()> {
    let small = small()?;
    let folder = tempfile::tempdir().expect("a folder");
    let (train, _) = corpora(&small, folder.path())?;
    let activations = Activations::new(&small.model, &train, points(300), None)?;
    assert!(activations.buffers() > 5);
    let mut rows = Vec::new();
    for buffer in 0..activations.buffers() {
        let held = activations.buffer(buffer, &[READ, WRITE], &mut |_, _| Ok(()))?;
        assert_eq!(held[READ].size()[0] as usize, activations.tokens(buffer));
        rows.push(Tensor::cat(&[&held[READ], &held[WRITE]], 1));
    }
    let ours = Tensor::cat(&rows, 0);
    assert_eq!(ours.size()[0] as usize, train.tokens());
    let all: Vec<usize> = (0..train.windows()).collect();
    let mut run = Run::new().cache(&[READ, WRITE]);
    let _ = small.model.run(&train.ids(&all)?, &mut run)?;
    let cache = run.take_cache();
    let flat = |point: &str| -> Result<Tensor> {
        let xs = cache.get(point)?;
        Ok(xs.narrow(1, 1, CONTEXT as i64 - 1).flatten(0, 1))
    };
    let theirs = Tensor::cat(&[flat(READ)?, flat(WRITE)?], 1);
    // Input and output of a token stay side by side: rows are the same when both are sorted by one value.
    let sorted = |xs: &Tensor| {
        let (_, order) = xs.select(1, 0).sort(0, false);
        xs.index_select(0, &order)
    };
    assert_near(&sorted(&ours), &sorted(&theirs), 1e-5);
    let apart = (&ours - &theirs).abs().max().double_value(&[]);
    assert!(apart > 0.1, "nothing was shuffled");
    Ok(())
}

#[test]
fn kept_activations_are_read_again_and_belong_to_one_model() -> Result<()> {
    let small = small()?;
    let scratch = tempfile::tempdir().expect("a folder");
    let (train, _) = corpora(&small, scratch.path())?;
    let store = scratch.path().join("store");
    let kept =
        |options: ActivationOptions| Activations::new(&small.model, &train, options, Some(&store));
    let first = kept(points(300))?;
    let quiet = &mut |_, _| Ok(());
    let made = first.buffer(1, &[READ, WRITE], quiet)?;
    assert!(first.is_kept(1) && !first.is_kept(0));
    let again = kept(points(300))?;
    let read = again.buffer(1, &[READ, WRITE], quiet)?;
    assert_bits(&read[WRITE], &made[WRITE]);
    assert_eq!(again.harvested().0, 0);
    assert!(again.buffer(1, &["blocks.0.hook_mlp_out"], quiet).is_err());
    assert_eq!(again.buffer(1, &[READ], quiet)?.len(), 1);
    let other = kept(points(200)).expect_err("other buffers");
    assert!(other.to_string().contains("another folder"), "{other}");
    let path = store.join("buffer-00001.safetensors");
    let bytes = fs::read(&path).expect("a file");
    fs::write(&path, &bytes[..bytes.len() / 2]).expect("a file");
    let torn = again
        .buffer(1, &[READ, WRITE], quiet)
        .expect_err("a torn file");
    assert!(matches!(torn, Error::Corrupt { .. }), "{torn}");
    fs::remove_file(&path).expect("a file");
    assert_bits(
        &again.buffer(1, &[READ, WRITE], quiet)?[WRITE],
        &made[WRITE],
    );
    Ok(())
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_stops_with_nothing_lost() -> Result<()> {
    let small = small()?;
    let scratch = tempfile::tempdir().expect("a folder");
    let (train, _) = corpora(&small, scratch.path())?;
    let store = scratch.path().join("store");
    let activations = Activations::new(&small.model, &train, points(300), Some(&store))?;
    let quiet = &mut |_, _| Ok(());
    let first = activations.buffer(0, &[READ, WRITE], quiet)?;
    // The next file's temporary name leads to a device that is always full.
    let path = store.join("buffer-00001.safetensors");
    let temporary = densely_core::fs::sibling(&path, "tmp");
    std::os::unix::fs::symlink("/dev/full", &temporary).expect("a link");
    let full = activations
        .buffer(1, &[READ, WRITE], quiet)
        .expect_err("a full disk");
    assert!(matches!(full, Error::Io { .. }), "{full}");
    assert!(full.to_string().contains("buffer-00001"), "{full}");
    assert!(!path.exists() && !temporary.exists());
    assert_bits(
        &activations.buffer(0, &[READ, WRITE], quiet)?[READ],
        &first[READ],
    );
    let later = activations.buffer(1, &[READ, WRITE], quiet)?;
    assert_bits(
        &activations.buffer(1, &[READ, WRITE], quiet)?[READ],
        &later[READ],
    );
    Ok(())
}

#[test]
fn points_of_no_layer_are_named() -> Result<()> {
    let small = small()?;
    assert_eq!(layer_of(&small.model, READ)?, 1);
    for point in [
        "hook_embed",
        "blocks.7.hook_mlp_out",
        "blocks.1.hook_mlp_outt",
    ] {
        let error = layer_of(&small.model, point)
            .expect_err("no point")
            .to_string();
        assert!(
            error.contains(point) && error.contains("nearest"),
            "{error}"
        );
    }
    Ok(())
}
