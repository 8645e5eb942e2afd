//! Environment files of units (systemd.exec(5), EnvironmentFile).

/// The line that sets `variable` to these words, for a command line in which systemd splits its value at
/// blanks (systemd.service(5), COMMAND LINES), as a shell would. A control character becomes a
/// question mark: the words are on this line, whoever has chosen them.
pub fn variable_of_words(variable: &str, words: &[String]) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=+@%".contains(c);
    let words = words.iter().map(|word| match !word.is_empty() && word.chars().all(is_plain) {
        true => word.clone(),
        false => in_double_quotes(word),
    });
    variable_of_text(variable, &words.collect::<Vec<_>>().join(" "))
}

/// The line that sets `variable` to this text; a control character likewise.
pub fn variable_of_text(variable: &str, text: &str) -> String {
    format!("{variable}={}\n", in_double_quotes(text))
}

fn in_double_quotes(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' | '$' | '`' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.push('?'),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_again_as_they_were() {
        let words = ["--append=a 'b' \"c\" $d `e` \\f", "", "é", "/a,b=c"].map(str::to_owned);
        let line = variable_of_words("OPTS", &words);
        let value = line.strip_prefix("OPTS=").unwrap();
        // The quotes of the value, and then those of the words.
        let [value] = &shlex::split(value).unwrap()[..] else { panic!("{line}") };
        assert_eq!(shlex::split(value).unwrap(), words, "{line}");
        assert!(line.contains(" /a,b=c\""), "{line}");
    }

    #[test]
    fn nothing_becomes_a_line_of_its_own() {
        let line = variable_of_text("WHY", "a\nGUEST_STOP=send:exec:id\r");
        assert_eq!(line, "WHY=\"a?GUEST_STOP=send:exec:id?\"\n");
    }
}
