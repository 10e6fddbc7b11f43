//! The bytes that a token of a vocabulary stands for.

use serde_json::Value;

use super::Spelling;

/// How the tokens are written whose `decoder` this is, in the words of a `tokenizer.json`.
pub(super) fn spelling(decoder: &Value) -> Spelling {
    let parts = decoder["decoders"].as_array().map(Vec::as_slice);
    let one = std::slice::from_ref(decoder);
    let has = |kinds: &[&str]| {
        let mut all = parts.unwrap_or(one).iter();
        all.any(|part| kinds.iter().any(|kind| part["type"] == *kind))
    };
    if has(&["ByteLevel"]) {
        Spelling::Bytes
    } else if has(&["ByteFallback", "Metaspace"]) {
        Spelling::Spaces
    } else {
        Spelling::Plain
    }
}

/// The bytes of `token`.
pub(super) fn of_token(token: &str, spelling: Spelling) -> Vec<u8> {
    match spelling {
        // Added tokens are written as they are; whichever has a character that is not in the table is one of them.
        Spelling::Bytes => token
            .chars()
            .map(of_char)
            .collect::<Option<Vec<u8>>>()
            .unwrap_or_else(|| token.as_bytes().to_vec()),
        Spelling::Spaces => match hexadecimal(token) {
            Some(byte) => vec![byte],
            None => token.replace('\u{2581}', " ").into_bytes(),
        },
        Spelling::Plain => token.as_bytes().to_vec(),
    }
}

/// The byte of `<0x0A>`.
fn hexadecimal(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// Whether GPT-2's table writes a byte as the character of its own number.
const fn is_itself(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// The byte for which a character stands in GPT-2's table: printable ones for themselves, the 68 others, in their order, for the
/// characters from 256 on.
fn of_char(c: char) -> Option<u8> {
    if let Ok(byte) = u8::try_from(u32::from(c)) {
        is_itself(byte).then_some(byte)
    } else {
        let rank = u32::from(c).checked_sub(256)? as usize;
        (0..=u8::MAX).filter(|byte| !is_itself(*byte)).nth(rank)
    }
}

/// The character that stands for a byte.
#[cfg(test)]
fn to_char(byte: u8) -> char {
    if is_itself(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|byte| !is_itself(*byte)).count();
    // At most 256 + 67, which is a character.
    char::from_u32(256 + rank as u32).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_table_is_one_to_one() {
        for byte in 0..=u8::MAX {
            assert_eq!(of_char(to_char(byte)), Some(byte));
        }
        assert_eq!(
            (to_char(b' '), to_char(b'\n'), to_char(b'a')),
            ('Ġ', 'Ċ', 'a')
        );
        assert_eq!(of_char('\u{144}'), None);
        assert_eq!(of_char(' '), None);
    }

    #[test]
    fn tokens_are_bytes() {
        assert_eq!(of_token("Ġcaf\u{c3}", Spelling::Bytes), b" caf\xc3");
        assert_eq!(of_token("a b", Spelling::Bytes), b"a b");
        assert_eq!(of_token("\u{2581}the", Spelling::Spaces), b" the");
        assert_eq!(of_token("<0xE2>", Spelling::Spaces), b"\xe2");
        assert_eq!(of_token("<0xE>", Spelling::Spaces), b"<0xE>");
        assert_eq!(of_token("<0xE2>", Spelling::Plain), b"<0xE2>");
    }

    #[test]
    fn the_decoder_says_how_tokens_are_written() {
        let sequence = json!({ "type": "Sequence", "decoders": [{ "type": "Replace" }, { "type": "ByteFallback" }] });
        for (decoder, expected) in [
            (json!({ "type": "ByteLevel" }), Spelling::Bytes),
            (sequence, Spelling::Spaces),
            (json!({ "type": "WordPiece" }), Spelling::Plain),
            (Value::Null, Spelling::Plain),
        ] {
            assert_eq!(spelling(&decoder), expected, "{decoder}");
        }
    }
}
