//! What is refused: fields that mean nothing, sizes that would end the process, hostile archives, and folders of something else.

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use densely_core::weights;
use densely_core::{Device, Error, Result, seeded};
use densely_interp::dictionary::folder::{
    Format, Metadata, holds, open, open_cross, save, save_cross,
};
use densely_interp::dictionary::{Activation, Dead, DictionaryConfig, Role, Sparsity};
use densely_testkit::{assert_bits, assert_near, copy_folder};
use tch::nn::VarStore;
use tch::{Kind, Tensor};

use super::formats::{folders, formats, refusal, with_tensors};

#[test]
fn kinds_without_fields_refuse_all_others() {
    for kind in ["relu", "gated"] {
        let of = |more: &str| {
            serde_json::from_str::<Activation>(&format!("{{\"kind\": \"{kind}\"{more}}}"))
        };
        assert!(of("").is_ok(), "{kind}");
        assert!(of(", \"k\": 32").is_err(), "{kind}");
    }
    let sparsity = |text: &str| serde_json::from_str::<Sparsity>(text);
    assert!(sparsity(r#"{"kind": "none"}"#).is_ok());
    assert!(sparsity(r#"{"kind": "none", "coefficient": 1.0}"#).is_err());
    let dead = |text: &str| serde_json::from_str::<Dead>(text);
    assert!(dead(r#"{"kind": "nothing"}"#).is_ok());
    assert!(dead(r#"{"kind": "nothing", "coefficient": 1.0}"#).is_err());
    assert!(serde_json::from_str::<Activation>(r#"{"kind": "top-k", "k": 1.5}"#).is_err());
}

#[test]
fn sizes_out_of_range_are_named() {
    let said = |config: DictionaryConfig| {
        let error = config.validate().expect_err("a size out of range");
        error.to_string()
    };
    let base = DictionaryConfig::transcoder();
    for k in [0.0, 0.5, f64::NAN] {
        let activation = Activation::BatchTopK { k, rescale: false };
        let message = said(DictionaryConfig { activation, ..base });
        assert!(message.contains("activation.k"), "{message}");
    }
    let d_sae = 2_000_000_000;
    let message = said(DictionaryConfig { d_sae, ..base });
    assert!(message.contains("`W_enc`"), "{message}");
    let (d_in, d_out) = (200_000, 200_000);
    let message = said(DictionaryConfig {
        d_in,
        d_out,
        d_sae: 16,
        skip: true,
        ..base
    });
    assert!(message.contains("`W_skip`"), "{message}");
}

/// An array as NumPy writes it.
fn npy(version: u8, kind: &str, order: &str, shape: &str, bytes: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{kind}', 'fortran_order': {order}, 'shape': ({shape}), }}\n");
    let mut all = b"\x93NUMPY".to_vec();
    all.extend([version, 0]);
    let length = (header.len() as u32).to_le_bytes();
    all.extend(if version == 1 {
        &length[..2]
    } else {
        &length[..]
    });
    all.extend(header.as_bytes());
    all.extend(bytes);
    all
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// A dictionary of 2 inputs and 3 features, by its arrays.
fn arrays() -> Vec<(&'static str, Vec<u8>)> {
    let columns: Vec<u8> = [0.0f64, 10.0, 1.0, 11.0, 2.0, 12.0]
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let halves = [0x00u8, 0x3c].repeat(6);
    vec![
        ("W_enc", npy(2, "<f8", "True", "2, 3", &columns)),
        ("W_dec", npy(3, "<f2", "False", "3, 2", &halves)),
        ("b_enc", npy(1, "<f4", "False", "3,", &f32s(&[0.5; 3]))),
        ("b_dec", npy(1, "<f4", "False", "2,", &f32s(&[0.25; 2]))),
    ]
}

fn zipped(arrays: &[(&str, Vec<u8>)]) -> Vec<u8> {
    packed(arrays, zip::CompressionMethod::Deflated)
}

fn packed(arrays: &[(&str, Vec<u8>)], method: zip::CompressionMethod) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in arrays {
        let options = zip::write::SimpleFileOptions::default().compression_method(method);
        zip.start_file(format!("{name}.npy"), options)
            .expect("started");
        zip.write_all(bytes).expect("written");
    }
    zip.finish().expect("zipped").into_inner()
}

fn written(folder: &Path, bytes: &[u8]) -> PathBuf {
    let path = folder.join("params.npz");
    fs::write(&path, bytes).expect("a file");
    path
}

#[test]
fn archives_of_all_kinds_and_orders_open() -> Result<()> {
    let scratch = tempfile::tempdir().expect("a folder");
    let opened = open(&written(scratch.path(), &zipped(&arrays())), Device::Cpu)?;
    let (encoder, decoder) = opened.dictionary.weights();
    let expected = Tensor::from_slice(&[0f32, 1.0, 2.0, 10.0, 11.0, 12.0]).reshape([2, 3]);
    assert_bits(&encoder.detach().contiguous(), &expected);
    let ones = Tensor::ones([3, 2], (Kind::Float, tch::Device::Cpu));
    assert_bits(&decoder.detach().contiguous(), &ones);
    Ok(())
}

#[test]
fn damaged_archives_are_refused_by_entry() {
    let scratch = tempfile::tempdir().expect("a folder");
    let said = |bytes: &[u8]| match open(&written(scratch.path(), bytes), Device::Cpu) {
        Ok(opened) => panic!("it is taken: {}", opened.described),
        Err(Error::Data { path, reason, .. }) => format!("{}: {reason}", path.display()),
        Err(error) => panic!("of another kind: {error}"),
    };
    let case = |index: usize, array: Vec<u8>, words: &str| {
        let mut all = arrays();
        all[index].1 = array;
        let message = said(&zipped(&all));
        let name = format!("params.npz: `{}.npy`", all[index].0);
        assert!(message.contains(&name), "{name}: {message}");
        assert!(message.contains(words), "{words}: {message}");
    };
    let of = |kind: &str, shape: &str, bytes: &[u8]| npy(1, kind, "False", shape, bytes);
    let values = f32s(&[1.0; 6]);
    case(1, of("<f4", "3, 2", &values[..20]), "not the 24 bytes");
    case(1, of("<f4", "3, 3", &values), "not the 36 bytes");
    case(1, of("<f4", "3, 1", &values), "not the 12 bytes");
    case(1, of(">f4", "3, 2", &values), "little-endian");
    case(1, of("<i4", "3, 2", &values), "must be f16");
    case(1, of("<f4", "-3, -2", &values), "must be f16");
    case(1, of("<f4", "0, 2", &[]), "must be f16");
    case(1, of("<f4", "1099511627776, 2", &values), "too large");
    let overflow = "4611686018427387904, 8";
    case(1, of("<f4", overflow, &values), "too large");
    case(
        1,
        npy(4, "<f4", "False", "3, 2", &values),
        "no array of NumPy",
    );
    case(1, b"\x93NUM".to_vec(), "its description");
    case(1, b"\x93NUMPY\x01\x00\xff\xff{".to_vec(), "its description");
    case(1, vec![0; 100], "no array of NumPy");

    let whole = zipped(&arrays());
    said(&whole[..whole.len() - 40]);
    // An archive that unpacks to more than a hundred times its size.
    let bomb = of("<f4", "1000, 1000", &vec![0u8; 4_000_000]);
    case(1, bomb, "too large for an archive");
    let mut locked = whole;
    for at in 0..locked.len() - 10 {
        // The flag of encryption, in both places where an entry is described.
        let start: [u8; 4] = locked[at..at + 4].try_into().expect("4 bytes");
        match start {
            [b'P', b'K', 1, 2] => locked[at + 8] |= 1,
            [b'P', b'K', 3, 4] => locked[at + 6] |= 1,
            _ => (),
        }
    }
    let message = said(&locked);
    assert!(message.contains("`W_enc.npy`"), "{message}");
}

#[test]
fn shapes_are_compared_before_there_is_memory() {
    let scratch = tempfile::tempdir().expect("a folder");
    let said = |n: usize| {
        let line = f32s(&vec![1.0; n]);
        let wide = npy(1, "<f4", "False", &format!("1, {n}"), &line);
        let mut all = arrays();
        all[0].1.clone_from(&wide);
        all[1].1 = wide;
        // A transcoder, whose widths may differ.
        let folder = scratch.path().join("transcoder");
        fs::create_dir_all(&folder).expect("a folder");
        let bytes = packed(&all, zip::CompressionMethod::Stored);
        match open(&written(&folder, &bytes), Device::Cpu) {
            Ok(opened) => panic!("it is taken: {}", opened.described),
            Err(error) => error.to_string(),
        }
    };
    let message = said(50_000);
    assert!(
        message.contains("W_dec (model [50000, 50000], file [1, 50000])"),
        "{message}"
    );
    let message = said(1_000_000);
    assert!(message.contains("`W_dec`"), "{message}");

    let message = refusal("sae_lens_skip_transcoder", |folder| {
        with_tensors(&folder.join("sae_weights.safetensors"), |tensors| {
            tensors.insert("W_skip".to_owned(), Tensor::from(1f32));
        });
    });
    assert!(message.contains("W_skip"), "{message}");
    let message = refusal("sparsify_transcoder", |folder| {
        with_tensors(&folder.join("sae.safetensors"), |tensors| {
            tensors.insert("W_dec".to_owned(), Tensor::from(1f32));
        });
    });
    assert!(message.contains("W_dec"), "{message}");

    let cross = scratch.path().join("cross");
    copy_folder(&folders("clt_", 2)[0], &cross);
    with_tensors(&cross.join("W_dec_0.safetensors"), |tensors| {
        tensors.insert("W_dec_0".to_owned(), Tensor::from(1f32));
    });
    let error = open_cross(&cross, Device::Cpu).expect_err("another shape");
    assert!(matches!(error, Error::Weights { .. }), "{error}");
    assert!(error.to_string().contains("W_dec_0"), "{error}");
}

#[test]
fn rows_of_zeros_stay_when_norms_are_folded() -> Result<()> {
    let scratch = tempfile::tempdir().expect("a folder");
    let config = DictionaryConfig {
        d_in: 4,
        d_out: 4,
        d_sae: 6,
        activation: Activation::TopK {
            k: 2,
            rescale: true,
        },
        ..DictionaryConfig::sae()
    };
    let vs = VarStore::new(tch::Device::Cpu);
    let (dictionary, x) = seeded(5, || -> Result<_> {
        let x = Tensor::f_randn([9, 4], (Kind::Float, tch::Device::Cpu))?;
        Ok((config.build(&vs.root())?, x))
    })?;
    tch::no_grad(|| {
        let _ = weights::named(&vs)["W_dec"].get(2).zero_();
    });
    let to = scratch.path().join("dictionary");
    save(&dictionary, &Metadata::default(), &to, None)?;
    let saved = weights::read(&to.join("sae_weights.safetensors"))?.tensors;
    for (name, xs) in &saved {
        assert_eq!(xs.isfinite().all().int64_value(&[]), 1, "{name}");
    }
    assert_eq!(saved["W_dec"].get(2).abs().max().double_value(&[]), 0.0);
    let opened = open(&to, Device::Cpu)?;
    let ys = tch::no_grad(|| dictionary.forward(&x))?.reconstruction;
    let again = tch::no_grad(|| opened.dictionary.forward(&x))?.reconstruction;
    assert_near(&again, &ys, 1e-6);
    Ok(())
}

#[test]
fn what_no_format_holds_is_known_before_a_training() -> Result<()> {
    let scratch = tempfile::tempdir().expect("a folder");
    let top = Activation::TopK {
        k: 2,
        rescale: false,
    };
    let small = DictionaryConfig {
        d_in: 4,
        d_out: 4,
        d_sae: 6,
        ..DictionaryConfig::transcoder()
    };
    let two_widths = DictionaryConfig {
        d_out: 5,
        activation: top,
        ..small
    };
    let skips = DictionaryConfig {
        role: Role::Autoencoder,
        skip: true,
        ..small
    };
    for config in [two_widths, skips] {
        config.validate()?;
        let before = holds(&config).expect_err("no format has it");
        assert!(matches!(before, Error::Unsupported { .. }), "{before}");
        let vs = VarStore::new(tch::Device::Cpu);
        let dictionary = seeded(0, || config.build(&vs.root()))?;
        let to = scratch.path().join("none");
        let after = save(&dictionary, &Metadata::default(), &to, None).expect_err("no format");
        assert_eq!(before.to_string(), after.to_string());
        assert!(!to.exists());
    }
    for config in [
        small,
        DictionaryConfig::sae(),
        DictionaryConfig::skip_transcoder(),
        DictionaryConfig {
            activation: top,
            ..small
        },
        DictionaryConfig {
            d_out: 5,
            activation: Activation::BatchTopK {
                k: 2.0,
                rescale: true,
            },
            ..small
        },
    ] {
        holds(&config)?;
    }
    Ok(())
}

#[test]
fn folders_of_something_else_are_not_written_into() -> Result<()> {
    let scratch = tempfile::tempdir().expect("a folder");
    let refused = |result: Result<()>, words: &str| {
        let error = result.expect_err("a folder of something else");
        assert!(matches!(error, Error::Config { .. }), "{error}");
        assert!(error.to_string().contains(words), "{words}: {error}");
    };
    let path = &folders("clt_", 2)[0];
    let (cross, vs, metadata) = open_cross(path, Device::Cpu)?;
    let to = scratch.path().join("cross");
    save_cross(&cross, &vs, &metadata, &to)?;
    save_cross(&cross, &vs, &metadata, &to)?;
    open_cross(&to, Device::Cpu)?;
    let layers = cross.config().layers;
    let more = format!("W_enc_{layers}.safetensors");
    fs::write(to.join(&more), b"").expect("a file");
    let settings = fs::read(to.join("config.yaml")).expect("settings");
    refused(save_cross(&cross, &vs, &metadata, &to), &more);
    assert_eq!(
        fs::read(to.join("config.yaml")).expect("settings"),
        settings
    );

    let sparsify = open(&formats().join("sparsify_transcoder"), Device::Cpu)?;
    let relu = open(&formats().join("sae_lens_transcoder"), Device::Cpu)?;
    let to = scratch.path().join("dictionary");
    let into = |opened: &densely_interp::dictionary::folder::Opened| -> Result<Format> {
        save(&opened.dictionary, &opened.metadata, &to, None)
    };
    assert_eq!(into(&relu)?, Format::SaeLens);
    assert_eq!(into(&relu)?, Format::SaeLens);
    refused(into(&sparsify).map(|_| ()), "sae_weights.safetensors");
    Ok(())
}
