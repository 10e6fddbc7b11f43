//! Folders that the packages wrote, folders for the packages, and damaged ones.

use std::fs;
use std::path::{Path, PathBuf};

use densely_core::weights::{self, WeightFile};
use densely_core::{Device, Error, Result};
use densely_interp::dictionary::folder::{
    self, Format, Metadata, open, open_cross, save, save_cross,
};
use densely_interp::dictionary::{Activation, InputBias, Role};
use densely_testkit::{assert_bits, assert_near, copy_folder};
use tch::Tensor;

use super::{Golden, HERE, load};

pub(super) fn formats() -> PathBuf {
    Path::new(HERE).join("tests/formats")
}

fn expected(folder: &Path) -> Result<WeightFile> {
    weights::read(&folder.join("expected.safetensors"))
}

/// The folders of a package, which must be so many.
pub(super) fn folders(prefix: &str, count: usize) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(formats())
        .expect("the folder of formats")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
        .collect();
    all.sort();
    assert_eq!(all.len(), count, "{all:?}");
    all
}

#[test]
fn folders_of_the_packages_give_their_numbers() -> Result<()> {
    let both = [folders("sae_lens_", 10), folders("sparsify_", 3)].concat();
    for path in both {
        let opened = open(&path, Device::Cpu)?;
        let found = expected(&path)?.tensors;
        let x = &found["input.x"];
        let coded = tch::no_grad(|| opened.dictionary.forward(x))?;
        let features = opened.dictionary.shown(&coded.features)?;
        assert_near(&features, &found["output.features"], 1e-5);
        assert_near(&coded.reconstruction, &found["output.reconstruction"], 1e-5);
        if path.to_string_lossy().contains("sae_lens") {
            let metadata = &opened.metadata;
            assert_eq!(metadata.model_name.as_deref(), Some("gpt2"));
            assert_eq!(metadata.context_size, Some(16));
            assert_eq!(metadata.prepend_bos, Some(true));
        }
    }
    Ok(())
}

#[test]
fn saved_folders_open_to_the_same_numbers() -> Result<()> {
    let scratch = tempfile::tempdir().expect("a folder");
    for path in [folders("sae_lens_", 10), folders("sparsify_", 3)].concat() {
        let opened = open(&path, Device::Cpu)?;
        let to = scratch.path().join(path.file_name().unwrap_or_default());
        let format = save(&opened.dictionary, &opened.metadata, &to, None)?;
        let again = open(&to, Device::Cpu)?;
        assert_eq!(again.metadata, opened.metadata);
        assert_eq!(
            again.dictionary.config().d_sae,
            opened.dictionary.config().d_sae
        );
        let sparsify = path.to_string_lossy().contains("sparsify");
        let square = opened.dictionary.config().role == Role::Transcoder;
        assert_eq!(format == Format::Sparsify, sparsify && square, "{path:?}");
        let x = &expected(&path)?.tensors["input.x"];
        let ys = |opened: &folder::Opened| -> Result<Tensor> {
            Ok(tch::no_grad(|| opened.dictionary.forward(x))?.reconstruction)
        };
        assert_near(&ys(&again)?, &ys(&opened)?, 1e-6);
    }
    Ok(())
}

/// The script of the goldens opens these folders in the packages. They are written anew where `DENSELY_WRITE_FORMATS` is set.
#[test]
fn folders_for_the_packages_are_the_committed_ones() -> Result<()> {
    let scratch = tempfile::tempdir().expect("a folder");
    for (name, golden) in [
        ("written_paper", "dictionary_paper"),
        ("written_topk_autoencoder", "dictionary_sae_topk"),
        ("written_batchtopk", "dictionary_sae_batchtopk_dead"),
        ("written_jumprelu", "dictionary_sae_jumprelu"),
        ("written_skip_transcoder", "dictionary_sparsify_transcoder"),
    ] {
        let golden = Golden::open(HERE, golden);
        let (mut dictionary, _vs) = load(&golden, tch::Kind::Float)?;
        let x = golden.tensor("input.x").to_kind(tch::Kind::Float);
        let coded = tch::no_grad(|| dictionary.forward(&x))?;
        for _ in 0..400 {
            dictionary.follow_threshold(&coded.features)?;
        }
        let metadata = Metadata {
            model_name: Some("gpt2".to_owned()),
            hook_name: Some("blocks.1.ln2.hook_normalized".to_owned()),
            hook_name_out: Some("blocks.1.hook_mlp_out".to_owned()),
            ..Metadata::default()
        };
        let to = scratch.path().join(name);
        save(&dictionary, &metadata, &to, None)?;
        let opened = open(&to, Device::Cpu)?;
        let ys = tch::no_grad(|| opened.dictionary.forward(&x))?.reconstruction;
        // One threshold stands for the choice among this batch: only the last chosen may differ.
        if !matches!(dictionary.config().activation, Activation::BatchTopK { .. }) {
            assert_near(&ys, &coded.reconstruction, 1e-5);
        }
        let tensors = [
            ("input.x".to_owned(), x),
            ("output.reconstruction".to_owned(), ys),
        ];
        weights::save(
            &to.join("expected.safetensors"),
            &tensors.into(),
            &[].into(),
        )?;
        let committed = formats().join(name);
        if std::env::var_os("DENSELY_WRITE_FORMATS").is_some() {
            let _ = fs::remove_dir_all(&committed);
            copy_folder(&to, &committed);
        }
        for entry in fs::read_dir(&to).expect("the folder") {
            let path = entry.expect("an entry").path();
            let other = committed.join(path.file_name().unwrap_or_default());
            if path.extension().is_some_and(|ending| ending == "json") {
                let text = |path: &Path| fs::read_to_string(path).expect("a text");
                assert_eq!(text(&path), text(&other), "{name}");
                continue;
            }
            let (ours, theirs) = (
                weights::read(&path)?.tensors,
                weights::read(&other)?.tensors,
            );
            assert_eq!(ours.len(), theirs.len(), "{name}");
            for (key, xs) in ours {
                assert_near(&xs, &theirs[&key], 1e-6);
            }
        }
    }
    Ok(())
}

#[test]
fn gemma_scope_and_circuit_tracer_files_open() -> Result<()> {
    let scratch = tempfile::tempdir().expect("a folder");
    let source = open(&formats().join("sae_lens_jumprelu_transcoder"), Device::Cpu)?;
    let found = weights::named(&source.vs);
    let x = &expected(&formats().join("sae_lens_jumprelu_transcoder"))?.tensors["input.x"];
    let ys = tch::no_grad(|| source.dictionary.forward(x))?.reconstruction;

    let folder = scratch.path().join("gemma-scope-transcoders/layer_3");
    fs::create_dir_all(&folder).expect("a folder");
    let arrays: Vec<(String, Tensor)> = found
        .iter()
        .map(|(name, xs)| (name.clone(), xs.detach().contiguous()))
        .collect();
    Tensor::write_npz(&arrays, folder.join("params.npz"))?;
    let opened = open(&folder, Device::Cpu)?;
    assert_eq!(opened.dictionary.config().role, Role::Transcoder);
    assert_eq!(opened.dictionary.config().input_bias, InputBias::None);
    assert_bits(
        &tch::no_grad(|| opened.dictionary.forward(x))?.reconstruction,
        &ys,
    );

    let path = scratch.path().join("layer_3.safetensors");
    let lines = found
        .into_iter()
        .map(|(name, xs)| match name.as_str() {
            "W_enc" => (name, xs.detach().tr()),
            "threshold" => ("activation_function.threshold".to_owned(), xs.detach()),
            _ => (name, xs.detach()),
        })
        .collect();
    weights::save(&path, &lines, &[].into())?;
    let opened = open(&path, Device::Cpu)?;
    assert_bits(
        &tch::no_grad(|| opened.dictionary.forward(x))?.reconstruction,
        &ys,
    );
    Ok(())
}

#[test]
fn cross_layer_folders_give_circuit_tracers_numbers() -> Result<()> {
    let scratch = tempfile::tempdir().expect("a folder");
    for path in folders("clt_", 2) {
        let (cross, vs, metadata) = open_cross(&path, Device::Cpu)?;
        assert_eq!(metadata.hook_name.as_deref(), Some("hook_resid_mid"));
        let found = expected(&path)?.tensors;
        let check = |cross: &densely_interp::dictionary::cross::CrossLayer| -> Result<()> {
            let (features, ys) = tch::no_grad(|| cross.forward(&found["input.x"]))?;
            let dense = features
                .iter()
                .map(densely_interp::dictionary::Features::dense)
                .collect::<Result<Vec<_>>>()?;
            assert_near(&Tensor::stack(&dense, 1), &found["output.features"], 1e-5);
            assert_near(&ys, &found["output.reconstruction"], 1e-5);
            Ok(())
        };
        check(&cross)?;
        let to = scratch.path().join(path.file_name().unwrap_or_default());
        save_cross(&cross, &vs, &metadata, &to)?;
        let (again, _vs, same) = open_cross(&to, Device::Cpu)?;
        assert_eq!(same, metadata);
        check(&again)?;
    }
    Ok(())
}

/// What opening a changed copy of a folder says.
pub(super) fn refusal(folder: &str, change: impl FnOnce(&Path)) -> String {
    let scratch = tempfile::tempdir().expect("a folder");
    let to = scratch.path().join("dictionary");
    copy_folder(&formats().join(folder), &to);
    change(&to);
    match open(&to, Device::Cpu) {
        Ok(opened) => panic!("{folder} is taken: {}", opened.described),
        Err(error @ Error::Torch { .. }) => panic!("{error}"),
        Err(error) => error.to_string(),
    }
}

pub(super) fn with_tensors(path: &Path, change: impl FnOnce(&mut densely_core::Tensors)) {
    let mut tensors = weights::read(path).expect("weights").tensors;
    change(&mut tensors);
    weights::save(path, &tensors, &[].into()).expect("a file");
}

#[test]
fn damaged_dictionaries_are_refused_by_name() {
    let weights = "sae_weights.safetensors";
    let said = |change: &dyn Fn(&Path)| refusal("sae_lens_jumprelu", change);
    let case = |change: &dyn Fn(&Path), words: &str| {
        let message = said(change);
        assert!(message.contains(words), "{words}: {message}");
    };
    let of = |change: fn(&mut densely_core::Tensors)| {
        move |folder: &Path| with_tensors(&folder.join(weights), change)
    };
    case(
        &of(|tensors| {
            let _ = tensors
                .get_mut("b_enc")
                .expect("b_enc")
                .get(2)
                .fill_(f64::NAN);
        }),
        "`b_enc` holds a value that is not finite",
    );
    case(
        &of(|tensors| drop(tensors.remove("threshold"))),
        "threshold",
    );
    case(&of(|tensors| drop(tensors.remove("W_enc"))), "`W_enc`");
    case(
        &of(|tensors| {
            let wide = tensors["b_dec"].repeat([2]);
            tensors.insert("b_dec".to_owned(), wide);
        }),
        "b_dec",
    );
    case(
        &of(|tensors| drop(tensors.insert("W_more".to_owned(), Tensor::from(1f32)))),
        "W_more",
    );
    case(
        &|folder| {
            let path = folder.join(weights);
            let bytes = fs::read(&path).expect("a file");
            fs::write(&path, &bytes[..bytes.len() - 7]).expect("a file");
        },
        weights,
    );
    let settings = |from: &'static str, to: &'static str| {
        move |folder: &Path| {
            let path = folder.join("cfg.json");
            let text = fs::read_to_string(&path).expect("a text");
            assert!(text.contains(from), "{text}");
            fs::write(path, text.replace(from, to)).expect("a file");
        }
    };
    case(&settings("\"d_sae\": 20", "\"d_sae\": 21"), "`d_sae` is 21");
    case(&settings("\"jumprelu\"", "\"jumpy\""), "`jumpy`");
    case(&settings("\"none\"", "\"sometimes\""), "sometimes");
    case(&settings("{", "["), "cfg.json");
    case(
        &|folder| fs::remove_file(folder.join("cfg.json")).expect("a file"),
        "cfg.json",
    );
    let nowhere = open(Path::new("no/such"), Device::Cpu).expect_err("a missing folder");
    assert!(nowhere.to_string().contains("no/such"), "{nowhere}");
}

#[test]
fn formats_refuse_what_they_cannot_hold() -> Result<()> {
    let scratch = tempfile::tempdir().expect("a folder");
    let transcoder = open(&formats().join("sparsify_transcoder"), Device::Cpu)?;
    let refused = save(
        &transcoder.dictionary,
        &transcoder.metadata,
        scratch.path(),
        Some(Format::SaeLens),
    );
    assert!(
        matches!(refused, Err(Error::Unsupported { .. })),
        "{refused:?}"
    );
    let relu = open(&formats().join("sae_lens_transcoder"), Device::Cpu)?;
    let refused = save(
        &relu.dictionary,
        &relu.metadata,
        scratch.path(),
        Some(Format::Sparsify),
    );
    assert!(
        matches!(refused, Err(Error::Unsupported { .. })),
        "{refused:?}"
    );
    assert!("npz".parse::<Format>().is_err());
    Ok(())
}
