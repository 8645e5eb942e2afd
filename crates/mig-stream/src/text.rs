//! Text that a peer sends and a terminal shows.

/// The longest reason that is sent or read (bytes); longer ones are cut when written.
pub const MAX_REASON: usize = 4096;

/// `text` without control characters, so that what a peer wrote cannot drive the terminal that
/// shows it, and no longer than `max` bytes.
pub(crate) fn clean(text: &str, max: usize) -> String {
    let mut cleaned = String::new();
    for c in text.chars() {
        let c = match c {
            '\n' | '\t' => ' ',
            c if c.is_control() => char::REPLACEMENT_CHARACTER,
            c => c,
        };
        if cleaned.len() + c.len_utf8() > max {
            break;
        }
        cleaned.push(c);
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_cannot_drive_a_terminal() {
        assert_eq!(clean("no\x1b[2J disk\n", 100), "no\u{fffd}[2J disk ");
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        assert_eq!(clean("aüüü", 4), "aü");
        let long = "x".repeat(MAX_REASON + 1);
        assert_eq!(clean(&long, MAX_REASON).len(), MAX_REASON);
    }
}
