//! Tokens that come one by one, as text.

use super::Tokenizer;

/// Gives the text of tokens as they come. A token that ends within a character is kept until the rest of the character has come.
///
/// ```
/// # fn main() -> densely_core::Result<()> {
/// let tokenizer = densely_lm::Tokenizer::gpt2()?;
/// let mut stream = tokenizer.stream();
/// let text: String = tokenizer.encode("日本")?.into_iter().map(|id| stream.push(id)).collect();
/// assert_eq!(text + &stream.finish(), "日本");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    kept: Vec<u8>,
}

impl<'a> TextStream<'a> {
    pub(super) const fn new(tokenizer: &'a Tokenizer) -> Self {
        Self {
            tokenizer,
            kept: Vec::new(),
        }
    }

    /// The text that `id` completes; `�` for a token that does not exist.
    pub fn push(&mut self, id: i64) -> String {
        let bytes = self.tokenizer.bytes(id);
        self.kept
            .extend(bytes.unwrap_or_else(|| "\u{fffd}".as_bytes().to_vec()));
        let whole = whole_characters(&self.kept);
        let rest = self.kept.split_off(whole);
        let text = String::from_utf8_lossy(&self.kept).into_owned();
        self.kept = rest;
        text
    }

    /// The text of what is left, at the end.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.kept).into_owned()
    }
}

/// How many of the bytes can be given away: all but the start of a character at their end that may still become whole.
fn whole_characters(bytes: &[u8]) -> usize {
    let mut start = 0;
    loop {
        match std::str::from_utf8(&bytes[start..]) {
            Ok(_) => return bytes.len(),
            Err(error) => match error.error_len() {
                // Bytes that are no character, whatever comes next.
                Some(wrong) => start += error.valid_up_to() + wrong,
                None => return start + error.valid_up_to(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_start_of_a_character_is_kept() {
        for (bytes, whole) in [
            (b"".as_slice(), 0),
            (b"ab", 2),
            (b"a\xe6\x97", 1),
            (b"a\xe6\x97\xa5", 4),
            (b"\xffa\xf0\x9f", 2),
            (b"\x80\x80", 2),
        ] {
            assert_eq!(whole_characters(bytes), whole, "{bytes:?}");
        }
    }
}
