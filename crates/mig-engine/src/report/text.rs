//! Figures as people read them. ASCII alone: a report ends up in logs and on serial consoles.

use std::fmt;
use std::time::Duration;

/// A time in three digits and the unit that fits: `42.0 ms`, `1.84 s`, `2 min 5 s`.
pub struct Time(pub Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match self.0.as_nanos() {
            0 => "0 ms".to_owned(),
            ns @ 1..1_000 => format!("{ns} ns"),
            ns @ 1_000..999_500 => three_digits(ns, 1_000, "us"),
            ns @ 999_500..999_500_000 => three_digits(ns, 1_000_000, "ms"),
            ns @ 999_500_000..59_950_000_000 => three_digits(ns, 1_000_000_000, "s"),
            ns => minutes(ns.saturating_add(500_000_000) / 1_000_000_000),
        })
    }
}

fn three_digits(value: u128, unit: u128, name: &str) -> String {
    let scaled = value as f64 / unit as f64;
    let digits = match scaled {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{scaled:.digits$} {name}")
}

/// Longer than anybody waits: a year.
const FOR_EVER: u128 = 365 * 24 * 3600;

fn minutes(seconds: u128) -> String {
    match seconds {
        FOR_EVER.. => "for ever".to_owned(),
        3600.. => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

/// A count with its thousands apart: `133,168`.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A bar of at most `width` characters for `part` of `whole`. Whatever is not nothing is seen.
pub(crate) fn bar(part: u128, whole: u128, width: usize) -> String {
    if part == 0 || whole == 0 {
        return String::new();
    }
    let share = part.min(whole) as f64 / whole as f64;
    let length = (share * width as f64).round() as usize;
    "#".repeat(length.clamp(1, width))
}

/// Text from outside, made safe for a terminal line: printable, and at most `width` characters.
pub fn clean(text: &str, width: usize) -> String {
    let shown = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    if text.chars().count() <= width {
        return shown.collect();
    }
    let cut = width.saturating_sub(3);
    shown.take(cut).chain("...".chars().take(width)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_three_digits_and_the_unit_that_fits() {
        for (ns, text) in [
            (0, "0 ms"),
            (999, "999 ns"),
            (1_500, "1.50 us"),
            (999_499, "999 us"),
            (999_500, "1.00 ms"),
            (9_994_000, "9.99 ms"),
            (9_996_000, "10.0 ms"),
            (99_960_000, "100 ms"),
            (312_400_000, "312 ms"),
            (999_500_000, "1.00 s"),
            (59_940_000_000, "59.9 s"),
            (59_950_000_000, "1 min 0 s"),
            (125_000_000_000, "2 min 5 s"),
            (7_260_000_000_000, "2 h 1 min"),
            (u64::MAX, "for ever"),
        ] {
            assert_eq!(Time(Duration::from_nanos(ns)).to_string(), text, "{ns}");
        }
        assert_eq!(Time(Duration::MAX).to_string(), "for ever");
        assert_eq!(format!("{:>8}", Time(Duration::from_secs(1))), "  1.00 s");
    }

    #[test]
    fn thousands_stand_apart() {
        for (count, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (133_168, "133,168")] {
            assert_eq!(grouped(count), text);
        }
        assert_eq!(grouped(u64::MAX), "18,446,744,073,709,551,615");
    }

    #[test]
    fn whatever_is_not_nothing_has_a_bar() {
        assert_eq!(bar(0, 10, 20), "");
        assert_eq!(bar(5, 10, 20).len(), 10);
        assert_eq!(bar(1, u128::MAX, 20), "#");
        assert_eq!(bar(11, 10, 20).len(), 20);
    }

    #[test]
    fn text_from_outside_cannot_steer_the_terminal() {
        assert_eq!(clean("a\x1b[2Jb\n", 20), "a [2Jb ");
        assert_eq!(clean("abcdefghij", 8), "abcde...");
        assert_eq!(clean("abcdefghij", 2), "..");
    }
}
