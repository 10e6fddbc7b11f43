//! Tokenisers against `tiktoken`, against the library that reads `tokenizer.json`, and on files that mean no good.

use std::collections::HashMap;
use std::path::Path;

use densely_core::{Error, Result};
use densely_lm::Tokenizer;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

use super::tiny::folder;

/// The character that stands for a byte in GPT-2's table.
pub(crate) fn alphabet(byte: u8) -> char {
    let itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if itself(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|byte| !itself(*byte)).count() as u32;
    char::from_u32(256 + rank).expect("a character")
}

fn spelt(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| alphabet(*byte)).collect()
}

/// Tokens of a small byte-level tokeniser, by number, and its merges: all bytes, four merges, one mark.
pub(crate) fn small() -> (Vec<String>, Vec<String>) {
    let mut tokens: Vec<String> = (0..=u8::MAX).map(|byte| spelt(&[byte])).collect();
    for token in ["he", "Ġt", "ll", "hell", "<|endoftext|>"] {
        tokens.push(token.to_owned());
    }
    let merges = ["h e", "Ġ t", "l l", "he ll"].map(str::to_owned);
    (tokens, merges.to_vec())
}

/// Number of tokens of [`small`].
pub(crate) const SMALL: i64 = 261;
/// Its mark.
pub(crate) const END: i64 = 260;

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(Error::io(path))
}

/// Writes [`small`] as `vocab.json` and `merges.txt`.
pub(crate) fn write_small(folder: &Path) -> Result<()> {
    let (tokens, merges) = small();
    let vocabulary: Map<String, Value> = tokens
        .into_iter()
        .zip((0..).map(|id: u32| json!(id)))
        .collect();
    write(
        &folder.join("vocab.json"),
        &Value::Object(vocabulary).to_string(),
    )?;
    let text = format!("#version: 0.2\n{}\n", merges.join("\n"));
    write(&folder.join("merges.txt"), &text)
}

/// [`small`] as a `tokenizer.json` that puts its mark before a text.
fn small_json() -> Value {
    let (tokens, merges) = small();
    let vocabulary: Map<String, Value> = tokens
        .into_iter()
        .zip((0..).map(|id: u32| json!(id)))
        .collect();
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{
            "id": END, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }],
        "normalizer": null, "pre_tokenizer": bytes, "decoder": bytes,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                { "SpecialToken": { "id": "<|endoftext|>", "type_id": 0 } },
                { "Sequence": { "id": "A", "type_id": 0 } },
            ],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
            "special_tokens": { "<|endoftext|>": { "id": "<|endoftext|>", "ids": [END], "tokens": ["<|endoftext|>"] } },
        },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges,
        },
    })
}

/// A text of up to 40 characters from all corners of Unicode, words and spaces among them.
fn random_text(rng: &mut ChaCha8Rng) -> String {
    let length = rng.random_range(0..40);
    let mut text = String::new();
    for _ in 0..length {
        let draw: u32 = rng.random_range(0..12);
        let pick = |range: std::ops::Range<u32>, rng: &mut ChaCha8Rng| {
            char::from_u32(rng.random_range(range)).unwrap_or('?')
        };
        match draw {
            0..=3 => text.push(pick(0x61..0x7b, rng)),
            4 => text.push(pick(0x30..0x3a, rng)),
            5 => text.push([' ', '\n', '\t', '\u{a0}', '\r', '\u{3000}'][rng.random_range(0..6)]),
            6 => text.push(pick(0x20..0x7f, rng)),
            7 => text.push(pick(0xc0..0x250, rng)),
            8 => text.push(pick(0x300..0x370, rng)),
            9 => text.push(pick(0x4e00..0x9fff, rng)),
            10 => text.push(pick(0x1f300..0x1f700, rng)),
            _ if rng.random() => {
                text.push_str(["'s", "'ll", " the", "  ", "1735"][rng.random_range(0..5)]);
            }
            _ => text.push(pick(0..0x11_0000, rng)),
        }
    }
    text
}

#[test]
fn gpt2_gives_the_published_tokens() -> Result<()> {
    let tokenizer = Tokenizer::gpt2()?;
    let text = "Hello world! The war lasted from 1735 to 17";
    let ids = [15496, 995, 0, 383, 1175, 15436, 422, 1596, 2327, 284, 1596];
    assert_eq!(tokenizer.encode(text)?, ids);
    assert_eq!(tokenizer.decode(&ids)?, text);
    assert_eq!(tokenizer.encode("<|endoftext|>")?, [50_256]);
    assert_eq!(
        (tokenizer.bos(), tokenizer.eos(), tokenizer.len()),
        (Some(50_256), Some(50_256), 50_257)
    );
    assert_eq!(tokenizer.piece(995)?, " world");
    for id in [-1, 50_257, i64::MAX] {
        let error = tokenizer
            .decode(&[0, id])
            .expect_err("no such token")
            .to_string();
        assert!(error.contains(&format!("token {id}")), "{error}");
    }
    Ok(())
}

/// The two tokens that `token` is made of: what is left when only more frequent tokens may be put together.
fn halves(token: &[u8], id: u32, ranks: &HashMap<Vec<u8>, u32>) -> Vec<Vec<u8>> {
    let mut parts: Vec<Vec<u8>> = token.iter().map(|byte| vec![*byte]).collect();
    loop {
        let pairs = parts.windows(2).enumerate();
        let ranked = pairs.filter_map(|(at, pair)| {
            let rank = ranks.get(&pair.concat())?;
            (*rank < id).then_some((*rank, at))
        });
        let Some((_, at)) = ranked.min() else {
            return parts;
        };
        let second = parts.remove(at + 1);
        parts[at].extend(second);
    }
}

#[test]
fn gpt2_from_its_files_equals_tiktoken() -> Result<()> {
    let theirs = Tokenizer::gpt2()?;
    let mut ranks = HashMap::new();
    let mut words = Map::new();
    let mut tokens = Vec::new();
    for id in 0..50_256u32 {
        let token = theirs.bytes(i64::from(id)).expect("a token");
        ranks.insert(token.clone(), id);
        words.insert(spelt(&token), json!(id));
        tokens.push(token);
    }
    words.insert("<|endoftext|>".to_owned(), json!(50_256));
    let mut merges = String::from("#version: 0.2\n");
    for (id, token) in (0u32..).zip(&tokens) {
        if token.len() > 1 {
            let parts = halves(token, id, &ranks);
            assert_eq!(parts.len(), 2, "token {id}");
            merges.push_str(&[&spelt(&parts[0]), " ", &spelt(&parts[1]), "\n"].concat());
        }
    }
    let folder = folder()?;
    write(
        &folder.path().join("encoder.json"),
        &Value::Object(words).to_string(),
    )?;
    write(&folder.path().join("vocab.bpe"), &merges)?;
    let ours = Tokenizer::from_folder(folder.path())?.expect("a tokeniser");
    assert_eq!(
        (ours.len(), ours.bos(), ours.eos()),
        (50_257, Some(50_256), Some(50_256))
    );
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..10_000 {
        let text = random_text(&mut rng);
        let ids = ours.encode(&text)?;
        assert_eq!(ids, theirs.encode(&text)?, "{text:?}");
        assert_eq!(ours.decode(&ids)?, text);
    }
    assert_eq!(
        ours.encode("a<|endoftext|>b")?,
        theirs.encode("a<|endoftext|>b")?
    );
    Ok(())
}

#[test]
fn a_tokenizer_json_equals_its_library() -> Result<()> {
    let folder = folder()?;
    let path = folder.path().join("tokenizer.json");
    write(&path, &small_json().to_string())?;
    write(
        &folder.path().join("tokenizer_config.json"),
        r#"{ "eos_token": { "content": "<|endoftext|>" } }"#,
    )?;
    let ours = Tokenizer::from_file(&path)?;
    let theirs = tokenizers::Tokenizer::from_file(&path).expect("a tokeniser");
    assert_eq!(
        (ours.len() as i64, ours.bos(), ours.eos()),
        (SMALL, None, Some(END))
    );
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for _ in 0..1000 {
        let text = random_text(&mut rng);
        for special in [true, false] {
            let ids: Vec<i64> = if special {
                ours.encode(&text)?
            } else {
                ours.encode_plain(&text)?
            };
            let same = theirs.encode(text.as_str(), special).expect("tokens");
            let same_ids: Vec<i64> = same.get_ids().iter().map(|id| i64::from(*id)).collect();
            assert_eq!(ids, same_ids, "{text:?}");
            assert_eq!(
                ours.decode(&ids)?,
                theirs.decode(same.get_ids(), false).expect("text")
            );
        }
    }
    assert_eq!(
        ours.encode("hello the")?,
        [END, 259, i64::from(b'o'), 257, 256]
    );
    Ok(())
}

#[test]
fn limits_and_padding_in_a_file_are_left_out() -> Result<()> {
    let folder = folder()?;
    let mut json = small_json();
    json["truncation"] =
        json!({ "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0 });
    json["padding"] = json!({
        "strategy": { "Fixed": 16 }, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "!",
    });
    let path = folder.path().join("tokenizer.json");
    write(&path, &json.to_string())?;
    assert_eq!(Tokenizer::from_file(&path)?.encode("hello")?.len(), 3);
    assert_eq!(Tokenizer::from_file(&path)?.encode("abcdefgh")?.len(), 9);
    Ok(())
}

#[test]
fn a_vocabulary_takes_its_marks_from_what_lies_beside_it() -> Result<()> {
    let folder = folder()?;
    write_small(folder.path())?;
    let plain = Tokenizer::from_folder(folder.path())?.expect("a tokeniser");
    assert_eq!(plain.encode("hello")?, [259, i64::from(b'o')]);
    assert_eq!(plain.encode("<|endoftext|>")?, [END]);

    write(
        &folder.path().join("tokenizer_config.json"),
        r#"{ "tokenizer_class": "GPT2Tokenizer", "bos_token": "</s>", "eos_token": "</s>", "add_bos_token": true }"#,
    )?;
    write(
        &folder.path().join("added_tokens.json"),
        r#"{ "</s>": 261 }"#,
    )?;
    let marked = Tokenizer::from_folder(folder.path())?.expect("a tokeniser");
    assert_eq!(marked.encode("hello")?, [261, 259, i64::from(b'o')]);
    assert_eq!(
        marked.encode_plain("hello</s>")?,
        [259, i64::from(b'o'), 261]
    );
    assert_eq!((marked.bos(), marked.len()), (Some(261), 262));

    write(
        &folder.path().join("tokenizer_config.json"),
        r#"{ "tokenizer_class": "XlmTokenizer" }"#,
    )?;
    let error = Tokenizer::from_folder(folder.path())
        .expect_err("unknown")
        .to_string();
    assert!(error.contains("XlmTokenizer"), "{error}");

    std::fs::remove_file(folder.path().join("merges.txt")).map_err(Error::io(folder.path()))?;
    let error = Tokenizer::from_folder(folder.path())
        .expect_err("half")
        .to_string();
    assert!(
        error.contains("`vocab.json` without `merges.txt`"),
        "{error}"
    );
    Ok(())
}

#[test]
fn pieces_of_sentences_are_bytes() -> Result<()> {
    let folder = folder()?;
    let path = folder.path().join("tokenizer.json");
    let json = json!({
        "version": "1.0", "added_tokens": [], "post_processor": null, "pre_tokenizer": null,
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "\u{2581}" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" },
        ] },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " },
            { "type": "ByteFallback" }, { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": { "\u{2581}": 0, "a": 1, "b": 2, "<0xC3>": 3, "<0xA9>": 4, "\u{2581}a": 5 }, "merges": ["\u{2581} a"],
        },
    });
    write(&path, &json.to_string())?;
    let tokenizer = Tokenizer::from_file(&path)?;
    let ids = tokenizer.encode("a é a")?;
    assert_eq!(ids, [5, 0, 3, 4, 5]);
    assert_eq!(tokenizer.decode(&ids)?, "a é a");
    assert_eq!(tokenizer.piece(5)?, " a");
    assert_eq!(tokenizer.span(&ids, "é")?, 2..4);
    Ok(())
}

#[test]
fn spans_cover_the_first_occurrence() -> Result<()> {
    let tokenizer = Tokenizer::gpt2()?;
    let text = "The Space Needle is in downtown Seattle, Space";
    let ids = tokenizer.encode(text)?;
    for (part, covered) in [
        ("Space Needle", " Space Needle"),
        ("The", "The"),
        ("downtown", " downtown"),
        ("Seattle", " Seattle"),
        ("eattl", " Seattle"),
        (text, text),
    ] {
        let range = tokenizer.span(&ids, part)?;
        assert_eq!(tokenizer.decode(&ids[range])?, covered, "{part}");
    }
    assert_eq!(tokenizer.span(&ids, "Space")?.start, 1);
    for part in ["", "Portland"] {
        let error = tokenizer.span(&ids, part).expect_err(part).to_string();
        assert!(error.contains("Space Needle"), "{error}");
    }

    // Each of these characters is several tokens, none of which is a character.
    let ids = tokenizer.encode("a 🜂🜃 b")?;
    let range = tokenizer.span(&ids, "🜃")?;
    assert!(tokenizer.decode(&ids[range.clone()])?.contains('🜃'));
    assert!(range.len() > 1 && range.end < ids.len());
    assert_eq!(tokenizer.piece(ids[range.start])?, "\u{fffd}");
    let mut stream = tokenizer.stream();
    let texts: Vec<String> = ids.iter().map(|id| stream.push(*id)).collect();
    assert_eq!(texts.concat(), "a 🜂🜃 b");
    assert!(texts.iter().all(|text| !text.contains('\u{fffd}')));
    assert_eq!(stream.finish(), "");
    Ok(())
}

#[test]
fn hostile_files_are_errors() -> Result<()> {
    let folder = folder()?;
    let path = folder.path().join("tokenizer.json");
    let good = small_json().to_string();
    for length in (0..good.len()).step_by(61) {
        let mut part = good.as_bytes().to_vec();
        part.truncate(length);
        std::fs::write(&path, part).map_err(Error::io(&path))?;
        let error = Tokenizer::from_file(&path).expect_err("truncated");
        assert!(matches!(error, Error::Corrupt { .. }), "{length}: {error}");
    }
    let mut prefixed = small_json();
    prefixed["model"]["continuing_subword_prefix"] = json!("much longer than any token");
    let mut foreign = small_json();
    foreign["model"]["merges"] = json!(["no where"]);
    let mut untyped = small_json();
    untyped["decoder"] = json!({ "type": "Nonsense" });
    for json in [prefixed, foreign, untyped, json!([]), json!({}), json!(1)] {
        write(&path, &json.to_string())?;
        let error = Tokenizer::from_file(&path).expect_err("no tokeniser");
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    }
    let vocabulary = folder.path().join("vocab.json");
    let merges = folder.path().join("merges.txt");
    for (words, pairs, part) in [
        ("{}", "a b\n", "it is no tokeniser"),
        ("[]", "", "no JSON object"),
        (r#"{ "a": -1 }"#, "", "`a` has no number"),
        (r#"{ "a": 1 }"#, "#version: 0.2\nab\n", "line 2"),
        (r#"{ "a": 1 }"#, "a b c\n", "line 1"),
    ] {
        write(&vocabulary, words)?;
        write(&merges, pairs)?;
        let error = Tokenizer::from_vocabulary(&vocabulary, &merges)
            .expect_err(part)
            .to_string();
        assert!(error.contains(part), "{error}");
    }
    Ok(())
}

#[test]
fn endless_spaces_are_refused_and_long_words_are_not() -> Result<()> {
    let tokenizer = Tokenizer::gpt2()?;
    let error = tokenizer
        .encode(&" ".repeat(100_001))
        .expect_err("too many")
        .to_string();
    assert!(error.contains("100000 spaces"), "{error}");
    for text in [
        " ".repeat(100_000),
        "x".repeat(300_000),
        " \n".repeat(40_000),
    ] {
        assert_eq!(tokenizer.decode(&tokenizer.encode(&text)?)?, text);
    }
    Ok(())
}
