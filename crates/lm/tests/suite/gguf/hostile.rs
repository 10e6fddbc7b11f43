//! Files that claim more than they hold, and parts of split models.

use std::path::Path;

use densely_core::{Error, Result};
use densely_lm::open;
use tch::{Device, Kind};

use super::{Place, Writer, text_bytes};
use crate::tiny;

/// Why the file does not open as a model.
fn refusal(path: &Path) -> String {
    let error = open(path, Device::Cpu, Kind::Float).expect_err("unfit");
    error.to_string()
}

/// The file with the values of a tensor of so many axes at another place of its data.
fn moved(bytes: &[u8], name: &str, axes: usize, offset: u64) -> Vec<u8> {
    let name = text_bytes(name);
    let found = bytes.windows(name.len()).position(|part| part == name);
    // Behind the name: the number of axes, the sizes, the type.
    let at = found.expect("the name") + name.len() + 4 + 8 * axes + 4;
    let mut all = bytes.to_vec();
    all[at..at + 8].copy_from_slice(&offset.to_le_bytes());
    all
}

#[test]
fn tensors_that_share_bytes_are_both_named() -> Result<()> {
    let place = Place::new()?;
    let mut writer = Writer::default();
    writer.tensor("a.weight", &[16], 0, vec![0; 64]);
    writer.tensor("b.weight", &[8, 2], 0, vec![0; 64]);
    writer.tensor("c.weight", &[32], 8, vec![0; 34]);
    // A type that is not read has no bytes to share.
    writer.tensor("d.weight", &[256], 39, Vec::new());
    let good = writer.bytes();
    assert_eq!(place.open(&good)?.tensors().len(), 4);
    for (name, axes, offset, pair) in [
        ("b.weight", 2, 0, "`a.weight` and `b.weight`"),
        ("b.weight", 2, 32, "`a.weight` and `b.weight`"),
        ("c.weight", 1, 96, "`b.weight` and `c.weight`"),
        ("a.weight", 1, 64, "`a.weight` and `b.weight`"),
    ] {
        let error = place.open(&moved(&good, name, axes, offset));
        let message = error.expect_err(pair).to_string();
        assert!(
            message.contains(pair) && message.contains("share bytes"),
            "{message}"
        );
    }
    Ok(())
}

/// Width of a model that no machine holds: each of its matrices has 2^40 values.
const VAST: u64 = 1 << 20;

/// The sizes of such a Llama with one layer, and a small tokeniser.
fn vast() -> Writer {
    let mut writer = Writer::default();
    writer.text("general.architecture", "llama");
    for (name, value) in [
        ("block_count", 1),
        ("context_length", 32),
        ("embedding_length", VAST as u32),
        ("feed_forward_length", VAST as u32),
        ("attention.head_count", 1 << 14),
    ] {
        writer.u32(&format!("llama.{name}"), value);
    }
    writer.f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    writer.tokenizer();
    writer
}

#[test]
fn types_are_looked_at_before_memory_is_taken() -> Result<()> {
    let place = Place::new()?;
    let mut writer = vast();
    for (name, rows) in [
        ("token_embd", 261),
        ("output_norm", 1),
        ("blk.0.attn_norm", 1),
        ("blk.0.attn_q", VAST),
        ("blk.0.attn_k", VAST),
        ("blk.0.attn_v", VAST),
        ("blk.0.attn_output", VAST),
        ("blk.0.ffn_norm", 1),
        ("blk.0.ffn_gate", VAST),
        ("blk.0.ffn_up", VAST),
        ("blk.0.ffn_down", VAST),
    ] {
        let size = [VAST, rows];
        let axes = if rows == 1 { 1 } else { 2 };
        writer.tensor(&format!("{name}.weight"), &size[..axes], 39, Vec::new());
    }
    let message = refusal(&place.write(&writer.bytes())?);
    assert!(
        message.contains("type MXFP4 of the tensor `token_embd.weight`"),
        "{message}"
    );
    Ok(())
}

#[test]
fn values_without_bytes_do_not_count() -> Result<()> {
    let place = Place::new()?;
    let mut writer = vast();
    writer.tensor("token_embd.weight", &[1, 261], 0, vec![0; 4 * 261]);
    writer.tensor("more.weight", &[VAST, VAST, 16], 39, Vec::new());
    let message = refusal(&place.write(&writer.bytes())?);
    assert!(
        message.contains("its sizes make a model of") && message.contains("are 261 values"),
        "{message}"
    );
    Ok(())
}

#[test]
fn parts_of_split_models_are_refused_with_the_way_out() -> Result<()> {
    let place = Place::new()?;
    let count = |parts: u16| {
        let mut writer = Writer::default();
        writer.put("split.count", 2, &parts.to_le_bytes());
        writer.bytes()
    };
    let message = refusal(&place.write(&count(3))?);
    for part in ["split into 3 files", "llama-gguf-split --merge"] {
        assert!(message.contains(part), "{message}");
    }

    let folder = tiny::folder()?;
    let write = |name: &str, bytes: &[u8]| -> Result<std::path::PathBuf> {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).map_err(Error::io(&path))?;
        Ok(path)
    };
    let plain = Writer::default().bytes();
    let second = write("m-00002-of-00004.gguf", &plain)?;
    let message = refusal(&second);
    assert!(message.contains("split into 4 files"), "{message}");
    // A merged file may keep the name of its first part.
    for bytes in [count(0), count(1)] {
        write("m-00002-of-00004.gguf", &bytes)?;
        let message = refusal(&second);
        assert!(message.contains("general.architecture"), "{message}");
    }
    write("m-00001-of-00004.gguf", &plain)?;
    let message = refusal(folder.path());
    for part in ["split into 4 files", "m-00001-of-00004.gguf"] {
        assert!(message.contains(part), "{message}");
    }
    for name in [
        "m-1-of-4.gguf",
        "m-00001-of-00001.gguf",
        "00001-of-00004.gguf",
    ] {
        let message = refusal(&write(name, &plain)?);
        assert!(
            message.contains("general.architecture"),
            "{name}: {message}"
        );
    }
    // Not all files of the folder are parts of a split one.
    let message = refusal(folder.path());
    assert!(message.contains("5 GGUF files"), "{message}");
    Ok(())
}
