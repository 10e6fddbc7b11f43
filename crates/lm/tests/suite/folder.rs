//! Folders of Hugging Face: whole and in shards, in other spellings and kinds, and what may be wrong with them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use densely_core::weights;
use densely_core::{Error, Result, Tensors, fs};
use densely_lm::{Lm, Opened, folder, open};
use densely_testkit::{assert_bits, assert_close};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::tiny;
use crate::tokenizer::write_small;

struct Folder {
    folder: tempfile::TempDir,
}

impl Folder {
    /// A whole folder of a small model.
    fn of(model: &Lm) -> Result<Self> {
        let folder = tiny::folder()?;
        folder::save(model, folder.path())?;
        write_small(folder.path())?;
        Ok(Self { folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn open(&self) -> Result<Opened> {
        open(self.folder.path(), Device::Cpu, Kind::Float)
    }

    /// Why it does not open.
    fn refusal(&self) -> String {
        self.open().expect_err("unfit").to_string()
    }

    fn write(&self, name: &str, json: &Value) -> Result<()> {
        fs::write(&self.path(name), json.to_string().as_bytes())
    }

    fn remove(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        std::fs::remove_file(&path).map_err(Error::io(&path))
    }

    fn save(&self, name: &str, tensors: &Tensors) -> Result<()> {
        weights::save(&self.path(name), tensors, &BTreeMap::new())
    }

    /// Puts the weights into two shards with an index; gives the keys of each.
    fn cut(&self, model: &Lm) -> Result<[Vec<String>; 2]> {
        self.remove("model.safetensors")?;
        let mut map = serde_json::Map::new();
        let mut keys = [Vec::new(), Vec::new()];
        let mut shards = [Tensors::new(), Tensors::new()];
        for (number, (name, xs)) in model.parameters().into_iter().enumerate() {
            let shard = number % 2;
            map.insert(name.clone(), json!(Self::shard(shard)));
            keys[shard].push(name.clone());
            shards[shard].insert(name, xs);
        }
        for (number, tensors) in shards.iter().enumerate() {
            self.save(Self::shard(number), tensors)?;
        }
        self.write(
            "model.safetensors.index.json",
            &json!({ "metadata": { "total_size": 1 }, "weight_map": map }),
        )?;
        Ok(keys)
    }

    const fn shard(number: usize) -> &'static str {
        [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ][number]
    }
}

/// Asserts that both models compute the same bits.
fn assert_same(ours: &Lm, theirs: &Lm) -> Result<()> {
    let ids = tiny::ids(2, 9);
    let _no_grad = tch::no_grad_guard();
    assert_bits(&ours.forward(&ids)?, &theirs.forward(&ids)?);
    Ok(())
}

fn resize(path: &Path, length: u64) -> Result<()> {
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(Error::io(path))?;
    file.set_len(length).map_err(Error::io(path))
}

#[test]
fn every_family_comes_back_the_same() -> Result<()> {
    for name in tiny::ALL {
        let (model, _vs) = tiny::model(name)?;
        let folder = Folder::of(&model)?;
        let opened = folder.open()?;
        assert_same(&opened.model, &model)?;
        assert_eq!(opened.model.config(), model.config(), "{name}");
        assert_eq!(opened.vs.len(), model.parameters().len());
        assert_eq!(opened.tokenizer.encode("hell")?, [259]);
        assert!(
            opened.described.contains("Float") && !opened.described.contains("cast"),
            "{}",
            opened.described
        );

        folder.cut(&model)?;
        let sharded = folder.open()?;
        assert_same(&sharded.model, &model)?;
        assert!(
            sharded.described.contains("2 shards"),
            "{}",
            sharded.described
        );
    }
    Ok(())
}

#[test]
fn weights_become_the_kind_that_is_asked_for() -> Result<()> {
    let (model, _vs) = tiny::model("llama")?;
    let folder = Folder::of(&model)?;
    let ids = tiny::ids(1, 9);
    let _no_grad = tch::no_grad_guard();
    let exact = model.forward(&ids)?;
    for (kind, near) in [(Kind::BFloat16, 0.3), (Kind::Double, 1e-4)] {
        let opened = open(folder.folder.path(), Device::Cpu, kind)?;
        assert_eq!(opened.model.kind(), kind);
        assert!(
            opened.described.contains("cast from Float"),
            "{}",
            opened.described
        );
        let logits = opened.model.forward(&ids)?;
        assert_eq!(logits.kind(), kind);
        assert_close(&logits.to_kind(Kind::Float), &exact, near, near);
    }
    let error = open(folder.folder.path(), Device::Cpu, Kind::Int64).expect_err("whole numbers");
    assert!(error.to_string().contains("Int64"), "{error}");
    Ok(())
}

#[test]
fn names_without_the_prefix_and_with_buffers_load() -> Result<()> {
    for (name, prefix, buffers) in [
        (
            "gpt2",
            "transformer.",
            ["h.0.attn.bias", "h.1.attn.masked_bias"].as_slice(),
        ),
        ("gptj", "transformer.", &["h.0.attn.bias"]),
        (
            "neox",
            "gpt_neox.",
            &[
                "layers.1.attention.bias",
                "layers.0.attention.rotary_emb.inv_freq",
            ],
        ),
        ("opt", "model.", &[]),
        (
            "llama",
            "model.",
            &["layers.0.self_attn.rotary_emb.inv_freq"],
        ),
    ] {
        let (model, _vs) = tiny::model(name)?;
        let folder = Folder::of(&model)?;
        let mut tensors: Tensors = model
            .parameters()
            .into_iter()
            .map(|(key, xs)| (key.strip_prefix(prefix).unwrap_or(&key).to_owned(), xs))
            .collect();
        for buffer in buffers {
            tensors.insert((*buffer).to_owned(), Tensor::from_slice(&[1f32]));
        }
        folder.save("model.safetensors", &tensors)?;
        assert_same(&folder.open()?.model, &model)?;
    }
    Ok(())
}

#[test]
fn a_head_beside_its_embedding_must_be_the_same() -> Result<()> {
    let (model, _vs) = tiny::model("gpt2")?;
    let folder = Folder::of(&model)?;
    let mut tensors = model.parameters();
    let embedding = model.parameter("transformer.wte.weight")?;
    tensors.insert("lm_head.weight".to_owned(), embedding.copy());
    folder.save("model.safetensors", &tensors)?;
    assert_same(&folder.open()?.model, &model)?;
    tensors.insert("lm_head.weight".to_owned(), &embedding + 1.0);
    folder.save("model.safetensors", &tensors)?;
    let refusal = folder.refusal();
    assert!(
        refusal.contains("`lm_head.weight`") && refusal.contains("differ"),
        "{refusal}"
    );
    Ok(())
}

#[test]
fn all_keys_that_do_not_fit_are_named() -> Result<()> {
    let (model, _vs) = tiny::model("llama")?;
    let folder = Folder::of(&model)?;
    let mut tensors = model.parameters();
    tensors.remove("model.layers.0.mlp.up_proj.weight");
    tensors.remove("model.norm.weight");
    tensors.insert("surplus".to_owned(), Tensor::from_slice(&[1f32]));
    tensors.insert(
        "model.layers.1.input_layernorm.weight".to_owned(),
        Tensor::from_slice(&[1f32]),
    );
    folder.save("model.safetensors", &tensors)?;
    let refusal = folder.refusal();
    for part in [
        "2 missing from the file: model.layers.0.mlp.up_proj.weight, model.norm.weight",
        "1 unknown to the model: surplus",
        "model.layers.1.input_layernorm.weight (model [16], file [1])",
    ] {
        assert!(refusal.contains(part), "{refusal}");
    }
    Ok(())
}

#[test]
fn shards_that_do_not_fit_are_named() -> Result<()> {
    let (model, _vs) = tiny::model("gpt2")?;
    let folder = Folder::of(&model)?;
    let keys = folder.cut(&model)?;
    let second = Folder::shard(1);
    let good = std::fs::read(folder.path(second)).map_err(Error::io(second))?;

    let length = good.len() as u64;
    for rest in [0, 7, 100, length - 1] {
        resize(&folder.path(second), rest)?;
        let refusal = folder.refusal();
        assert!(refusal.contains(second), "{refusal}");
    }
    folder.remove(second)?;
    let refusal = folder.refusal();
    assert!(
        refusal.contains(&format!("`{second}`, which is missing")),
        "{refusal}"
    );

    let parameters = model.parameters();
    let mut tensors: Tensors = parameters
        .iter()
        .filter(|(name, _)| keys[1].contains(name))
        .map(|(name, xs)| (name.clone(), xs.shallow_clone()))
        .collect();
    let stray = &keys[0][0];
    tensors.insert(stray.clone(), parameters[stray].shallow_clone());
    folder.save(second, &tensors)?;
    let refusal = folder.refusal();
    assert!(
        refusal.contains(&format!("`{stray}` is in two shards")),
        "{refusal}"
    );

    tensors.remove(stray);
    let lost = tensors
        .pop_first()
        .map(|(name, _)| name)
        .unwrap_or_default();
    folder.save(second, &tensors)?;
    let refusal = folder.refusal();
    assert!(
        refusal.contains(&format!("`{lost}`")) && refusal.contains("no shard"),
        "{refusal}"
    );

    for (index, part) in [
        (json!({}), "no `weight_map`"),
        (
            json!({ "weight_map": { "a": "../model.safetensors" } }),
            "`a`",
        ),
        (json!({ "weight_map": { "a": "/etc/passwd" } }), "`a`"),
        (json!({ "weight_map": { "a": 3 } }), "`a`"),
    ] {
        folder.write("model.safetensors.index.json", &index)?;
        let refusal = folder.refusal();
        assert!(refusal.contains(part), "{refusal}");
    }
    Ok(())
}

#[test]
fn what_a_folder_lacks_has_a_sentence_of_its_own() -> Result<()> {
    let (model, _vs) = tiny::model("gpt2")?;
    let folder = Folder::of(&model)?;
    let weights = folder.path("model.safetensors");
    let kept = std::fs::read(&weights).map_err(Error::io(&weights))?;

    folder.remove("model.safetensors")?;
    let refusal = folder.refusal();
    assert!(refusal.contains("no weights"), "{refusal}");
    fs::write(&folder.path("pytorch_model.bin"), b"pickle")?;
    let refusal = folder.refusal();
    assert!(
        refusal.contains("pytorch_model.bin") && refusal.contains("save_pretrained"),
        "{refusal}"
    );

    fs::write(&weights, &kept)?;
    folder.remove("vocab.json")?;
    let refusal = folder.refusal();
    assert!(refusal.contains("a model but no tokeniser"), "{refusal}");

    write_small(folder.folder.path())?;
    folder.remove("config.json")?;
    let refusal = folder.refusal();
    assert!(refusal.contains("a tokeniser but no model"), "{refusal}");
    folder.remove("vocab.json")?;
    let refusal = folder.refusal();
    assert!(refusal.contains("holds no model"), "{refusal}");

    for name in ["model.safetensors", "nowhere"] {
        let error = open(&folder.path(name), Device::Cpu, Kind::Float)
            .expect_err(name)
            .to_string();
        assert!(error.contains(name), "{error}");
    }
    Ok(())
}

#[test]
fn sizes_far_beyond_the_weights_are_refused_before_memory_is_taken() -> Result<()> {
    let (model, _vs) = tiny::model("gpt2")?;
    let folder = Folder::of(&model)?;
    let mut config = model.config().to_hugging();
    config["n_layer"] = json!(4000);
    config["n_embd"] = json!(3 * 4096);
    config["n_inner"] = json!(4 * 3 * 4096);
    folder.write("config.json", &config)?;
    let refusal = folder.refusal();
    assert!(refusal.contains("its sizes make a model of"), "{refusal}");
    folder.write("config.json", &json!([1, 2]))?;
    folder.refusal();
    fs::write(&folder.path("config.json"), b"{")?;
    assert!(folder.refusal().contains("no JSON"));
    Ok(())
}

#[test]
fn settings_are_small_and_tokens_may_be_many() -> Result<()> {
    let (model, _vs) = tiny::model("llama")?;
    let folder = Folder::of(&model)?;
    let path = folder.path("vocab.json");
    let mut text = std::fs::read(&path).map_err(Error::io(&path))?;
    text.resize(17 << 20, b' ');
    fs::write(&path, &text)?;
    folder.open()?;
    for name in [
        "special_tokens_map.json",
        "added_tokens.json",
        "tokenizer_config.json",
        "generation_config.json",
        "config.json",
    ] {
        folder.write(name, &json!({}))?;
        resize(&folder.path(name), (16 << 20) + 1)?;
        let refusal = folder.refusal();
        assert!(
            refusal.contains(name) && refusal.contains("16 MiB that a file of settings may have"),
            "{refusal}"
        );
        folder.remove(name)?;
    }
    Ok(())
}

#[test]
fn further_tokens_that_end_answers_are_added() -> Result<()> {
    let (model, _vs) = tiny::model("llama")?;
    let folder = Folder::of(&model)?;
    folder.write(
        "generation_config.json",
        &json!({ "eos_token_id": [2, 29, 30] }),
    )?;
    assert_eq!(folder.open()?.model.config().eos, [2, 29, 30]);
    folder.write("generation_config.json", &json!({ "eos_token_id": 28 }))?;
    assert_eq!(folder.open()?.model.config().eos, [2, 28]);
    Ok(())
}
