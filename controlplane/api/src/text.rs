//! Text that comes from somewhere else and is shown to people.

/// Whether a character steers a terminal or deceives a reader rather than being read: control
/// characters, and those of Unicode that hide, join or turn around what stands beside them.
#[must_use]
pub fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// Whether all of it can be read.
#[must_use]
pub fn is_printable(text: &str) -> bool {
    !text.chars().any(is_unprintable)
}

/// The text with a `\u{fffd}` in place of each character that cannot be read: what programs and
/// systems say in their error sentences is nobody's to refuse.
#[must_use]
pub fn cleaned(text: &str) -> String {
    let readable = |character| if is_unprintable(character) { '\u{fffd}' } else { character };
    text.chars().map(readable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_or_deceives_is_told_from_what_is_read() {
        for good in ["", "web-1", "größer", "東京", "a b", "e\u{301}", "\u{1f600}"] {
            assert!(is_printable(good), "{good:?}");
            assert_eq!(cleaned(good), good);
        }
        for bad in ["\u{1b}[2K", "a\nb", "\t", "\0", "\u{7f}", "\u{9b}", "\u{202e}", "\u{200b}"] {
            assert!(!is_printable(bad), "{bad:?}");
            assert!(is_printable(&cleaned(bad)), "{bad:?}");
        }
        assert_eq!(cleaned("a\u{1b}b"), "a\u{fffd}b");
    }
}
