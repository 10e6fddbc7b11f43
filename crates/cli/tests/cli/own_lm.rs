//! `densely lm`: a tiny model's folder judged and continued.

use super::{Bench, stderr, stdout};

use densely_core::seeded;
use densely_core::tch::nn::{Adam, OptimizerConfig, VarStore};
use densely_core::tch::{Device, Tensor};
use densely_lm::{Lm, LmConfig, folder};
use serde_json::{Map, Value, json};

/// The character that stands for a byte in GPT-2's table.
fn alphabet(byte: u8) -> char {
    let itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if itself(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|byte| !itself(*byte)).count() as u32;
    char::from_u32(256 + rank).unwrap()
}

impl Bench {
    /// Writes the folder `tiny`: a GPT-2 of random weights whose tokens are the bytes and a mark of the end.
    pub(super) fn model(&self) {
        self.taught(&[]);
    }

    /// Writes the folder `tiny` after training on texts of one length until it has them by heart.
    pub(super) fn taught(&self, texts: &[&str]) {
        let config = json!({
            "model_type": "gpt2", "vocab_size": 257, "n_positions": 48, "n_embd": 16, "n_layer": 2, "n_head": 2,
            "initializer_range": 0.2, "bos_token_id": 256, "eos_token_id": 256,
        });
        let vs = VarStore::new(Device::Cpu);
        let config = LmConfig::from_hugging(&config).unwrap();
        let model = seeded(0, || Lm::new(config, &vs.root())).unwrap();
        if !texts.is_empty() {
            let bytes: Vec<i64> = texts
                .iter()
                .flat_map(|text| text.bytes().map(i64::from))
                .collect();
            let ids = Tensor::from_slice(&bytes).view([texts.len() as i64, -1]);
            let (tokens, next) = (
                ids.narrow(1, 0, ids.size()[1] - 1),
                ids.narrow(1, 1, ids.size()[1] - 1),
            );
            let mut adam = Adam::default().build(&vs, 1e-2).unwrap();
            for _ in 0..200 {
                let logits = model.forward(&tokens).unwrap();
                let loss = logits
                    .flatten(0, 1)
                    .cross_entropy_for_logits(&next.flatten(0, 1));
                adam.backward_step(&loss);
            }
        }
        folder::save(&model, &self.path("tiny")).unwrap();
        let mut words: Map<String, Value> = (0..=u8::MAX)
            .map(|byte| (alphabet(byte).to_string(), json!(byte)))
            .collect();
        words.insert("<|endoftext|>".to_owned(), json!(256));
        self.write("tiny/vocab.json", &Value::Object(words).to_string());
        self.write("tiny/merges.txt", "#version: 0.2\n");
    }

    pub(super) fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&stdout(&self.densely(words).success())).unwrap()
    }
}

#[test]
fn a_text_is_judged() {
    let bench = Bench::new();
    bench.model();
    bench.write("text.txt", &"The quick brown fox.\n".repeat(10));
    let words = [
        "lm", "eval", "tiny", "text.txt", "--json", "--device", "cpu",
    ];
    let found = bench.json(&words);
    // 210 bytes in windows of 48 tokens, the first token of each of which is not predicted.
    assert_eq!(
        (&found["tokens"], &found["predictions"], &found["window"]),
        (&json!(210), &json!(205), &json!(48))
    );
    let nll = found["nll"].as_f64().unwrap();
    assert!(
        nll > 1.0 && (nll.exp() - found["perplexity"].as_f64().unwrap()).abs() < 1e-6 * nll.exp()
    );
    assert!((found["bits_per_byte"].as_f64().unwrap() - nll / std::f64::consts::LN_2).abs() < 1e-9);

    let more = ["--window", "16", "--stride", "4", "--limit", "50"];
    let strided = bench.json(&[words.as_slice(), &more].concat());
    assert_eq!(
        (&strided["predictions"], &strided["stride"]),
        (&json!(49), &json!(4))
    );

    let plain = bench
        .densely(&["lm", "eval", "tiny", "text.txt", "--device", "cpu"])
        .success();
    assert!(stdout(&plain).starts_with("nll "), "{}", stdout(&plain));
    assert!(
        stderr(&plain).contains("Gpt2, 2 layers"),
        "{}",
        stderr(&plain)
    );
}

#[test]
fn a_prompt_is_continued() {
    let bench = Bench::new();
    bench.model();
    let words = [
        "lm", "generate", "tiny", "--device", "cpu", "--prompt", "abc",
    ];
    let streamed = stdout(&bench.densely(&words).success());
    let found = bench.json(&[words.as_slice(), &["--json"]].concat());
    let row = &found["continuations"][0];
    assert_eq!(format!("{}\n", row["text"].as_str().unwrap()), streamed);
    assert_eq!(row["prompt"], "abc");
    // As many as the model has room for.
    assert!(row["tokens"].as_array().unwrap().len() <= 45);

    let draw = |seed: &str| {
        let more = [
            "--temperature",
            "3",
            "--top-k",
            "100",
            "--top-p",
            "0.99",
            "--max-new",
            "20",
            "--seed",
            seed,
        ];
        stdout(&bench.densely(&[words.as_slice(), &more].concat()).success())
    };
    assert_eq!(draw("1"), draw("1"));
    assert_ne!(draw("1"), draw("2"));

    let two = bench.json(
        &[
            words.as_slice(),
            &[
                "--prompt",
                "a longer one",
                "--max-new",
                "5",
                "--endless",
                "--json",
            ],
        ]
        .concat(),
    );
    assert_eq!(two["continuations"].as_array().unwrap().len(), 2);
    assert_eq!(two["new_tokens"], 10);
    assert_eq!(two["continuations"][0]["tokens"], {
        let one =
            bench.json(&[words.as_slice(), &["--max-new", "5", "--endless", "--json"]].concat());
        one["continuations"][0]["tokens"].clone()
    });
    let empty = bench.json(&[
        "lm",
        "generate",
        "tiny",
        "--device",
        "cpu",
        "--prompt",
        "",
        "--max-new",
        "2",
        "--json",
    ]);
    assert_eq!(empty["continuations"][0]["prompt"], "");
}

#[test]
fn bad_models_texts_and_settings_have_a_sentence() {
    let bench = Bench::new();
    bench.model();
    bench.write("short.txt", "a");
    std::fs::write(bench.path("binary.txt"), [0xff, 0xfe]).unwrap();
    bench.write("fake.gguf", "no such thing, whatever its name says");
    for (words, part) in [
        (["lm", "eval", "nowhere", "short.txt"].as_slice(), "nowhere"),
        (&["lm", "eval", "tiny", "short.txt"], "1 tokens"),
        (&["lm", "eval", "tiny", "binary.txt"], "not UTF-8"),
        (&["lm", "eval", "tiny", "missing.txt"], "missing.txt"),
        (&["lm", "eval", "fake.gguf", "short.txt"], "GGUF"),
        (
            &["lm", "eval", "tiny", "tiny/vocab.json", "--window", "100"],
            "window",
        ),
        (
            &[
                "lm",
                "generate",
                "tiny",
                "--prompt",
                "a",
                "--temperature",
                "-1",
            ],
            "temperature",
        ),
        (
            &["lm", "generate", "tiny", "--prompt", "a", "--top-p", "2"],
            "top_p",
        ),
        (
            &["lm", "generate", "tiny", "--prompt", "a", "--max-new", "48"],
            "takes 48 tokens",
        ),
    ] {
        let failed = bench
            .densely(&[words, &["--device", "cpu"]].concat())
            .failure()
            .code(1);
        let message = stderr(&failed);
        assert!(
            message.contains("error: ") && message.contains(part),
            "{words:?}: {message}"
        );
    }
    for words in [
        ["lm", "generate", "tiny"].as_slice(),
        &["lm", "eval", "tiny"],
        &["lm", "eval", "tiny", "short.txt", "--dtype", "i8"],
    ] {
        bench.densely(words).failure().code(2);
    }
}
