//! What pictures that are written as SVG by hand share: their frame, lines of text, and text that cannot break the file.

use std::fmt::Write;

/// A white picture of so many pixels up to its first shape; `</svg>` ends it. Text is set in the viewer's sans-serif font.
pub fn head(width: usize, height: usize) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" fill=\"#333\"><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>"
    )
}

/// Puts a line of text behind what `svg` holds. Its start, middle or end (`anchor`, as SVG names them) stands at `x`, its foot at `y`.
pub fn text(svg: &mut String, x: usize, y: usize, anchor: &str, size: usize, words: &str) {
    let _ = write!(
        svg,
        "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{}</text>",
        escaped(words)
    );
}

/// Text that cannot break the file.
pub fn escaped(words: &str) -> String {
    let mut text = String::with_capacity(words.len());
    for letter in words.chars() {
        match letter {
            '&' => text += "&amp;",
            '<' => text += "&lt;",
            '>' => text += "&gt;",
            // Other control characters are not allowed in XML.
            letter if letter.is_control() => text.push(' '),
            letter => text.push(letter),
        }
    }
    text
}

/// The text as it is where it has no more than `most` letters, else its beginning with `…` as the last of them.
pub fn shortened(words: &str, most: usize) -> String {
    if words.chars().count() <= most {
        return words.to_owned();
    }
    words
        .chars()
        .take(most.saturating_sub(1))
        .chain(['…'])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_written_byte_for_byte() {
        let mut svg = head(30, 20);
        text(&mut svg, 5, 7, "end", 12, "a < b & \u{7}");
        svg += "</svg>\n";
        assert_eq!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"30\" height=\"20\" viewBox=\"0 0 30 20\" font-family=\"sans-serif\" fill=\"#333\"><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/><text x=\"5\" y=\"7\" text-anchor=\"end\" font-size=\"12\">a &lt; b &amp;  </text></svg>\n"
        );
    }

    #[test]
    fn only_what_is_too_long_is_cut() {
        assert_eq!(shortened("four", 4), "four");
        assert_eq!(shortened("fives", 4), "fiv…");
        assert_eq!(shortened("ääääää", 6), "ääääää");
        assert_eq!(shortened("", 0), "");
        assert_eq!(escaped("<&>"), "&lt;&amp;&gt;");
    }
}
