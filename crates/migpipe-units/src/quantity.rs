//! Amounts and rates, with the notation that people type: `2G`, `200M`, `64k`.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::PAGE_SIZE;

/// A count of 4 KiB pages.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Pages(pub u64);

/// A count of bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// A rate in bytes per second.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct BytesPerSec(pub u64);

macro_rules! amount {
    ($name:ident) => {
        impl Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0 + other.0)
            }
        }
        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                self.0 += other.0;
            }
        }
        impl Sub for $name {
            type Output = Self;
            fn sub(self, other: Self) -> Self {
                Self(self.0 - other.0)
            }
        }
        impl SubAssign for $name {
            fn sub_assign(&mut self, other: Self) {
                self.0 -= other.0;
            }
        }
        impl Sum for $name {
            fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
                all.fold(Self(0), Add::add)
            }
        }
    };
}

amount!(Pages);
amount!(Bytes);

impl Pages {
    /// How many bytes these pages hold; saturates at the top.
    pub const fn bytes(self) -> Bytes {
        Bytes(self.0.saturating_mul(PAGE_SIZE))
    }
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pages", self.0)
    }
}

impl Bytes {
    /// How many pages are needed to hold these bytes.
    pub const fn pages(self) -> Pages {
        Pages(self.0.div_ceil(PAGE_SIZE))
    }

    /// The rate of moving these bytes in `time`; the highest rate there is for no time at all.
    pub fn per(self, time: Duration) -> BytesPerSec {
        let seconds = time.as_secs_f64();
        if seconds <= 0.0 {
            return BytesPerSec(u64::MAX);
        }
        BytesPerSec((self.0 as f64 / seconds) as u64)
    }
}

impl BytesPerSec {
    /// How long it takes to move `bytes` at this rate; [`Duration::MAX`] where it never ends.
    pub fn time_for(self, bytes: Bytes) -> Duration {
        if bytes.0 == 0 {
            return Duration::ZERO;
        }
        if self.0 == 0 {
            return Duration::MAX;
        }
        Duration::try_from_secs_f64(bytes.0 as f64 / self.0 as f64).unwrap_or(Duration::MAX)
    }
}

fn write_scaled(f: &mut fmt::Formatter<'_>, value: u64, suffix: &str) -> fmt::Result {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut scaled = value as f64;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && scaled < 100.0);
    f.pad(&format!("{scaled:.digits$} {}{suffix}", UNITS[unit]))
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_scaled(f, self.0, "")
    }
}

impl fmt::Display for BytesPerSec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_scaled(f, self.0, "/s")
    }
}

/// Why a text is not an amount.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseQuantityError {
    /// There is no number, or something follows it that is no unit.
    #[error("'{0}' is not a size: write a number and a unit, such as 512M or 2G")]
    NotASize(String),
    /// The amount does not fit 64 bits.
    #[error("'{0}' is larger than any machine")]
    TooLarge(String),
}

fn parse_scaled(text: &str) -> Result<u64, ParseQuantityError> {
    let not_a_size = || ParseQuantityError::NotASize(text.to_owned());
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(not_a_size()),
    };
    let number: u64 = digits.parse().map_err(|_| not_a_size())?;
    number.checked_mul(1 << shift).ok_or_else(|| ParseQuantityError::TooLarge(text.to_owned()))
}

impl FromStr for Bytes {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_scaled(text).map(Self)
    }
}

impl FromStr for BytesPerSec {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_scaled(text.strip_suffix("/s").unwrap_or(text)).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in
            [("0", 0), ("512", 512), ("64k", 65_536), ("200M", 209_715_200), ("2GiB", 2 << 30)]
        {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        assert_eq!("1M/s".parse(), Ok(BytesPerSec(1 << 20)));
    }

    #[test]
    fn what_is_no_size_is_refused_with_its_own_text() {
        for text in ["", "G", "-1", "1x", "1 G", "0x10"] {
            let error = text.parse::<Bytes>().unwrap_err();
            assert!(error.to_string().contains(&format!("'{text}'")), "{error}");
        }
        assert!(matches!("99999999T".parse::<Bytes>(), Err(ParseQuantityError::TooLarge(_))));
    }

    #[test]
    fn sizes_are_shown_in_three_or_four_digits() {
        assert_eq!(Bytes(999).to_string(), "999 B");
        assert_eq!(Bytes(1536).to_string(), "1.5 KiB");
        assert_eq!(Bytes(400 << 20).to_string(), "400 MiB");
        assert_eq!(BytesPerSec(2 << 30).to_string(), "2.0 GiB/s");
    }

    #[test]
    fn a_rate_of_nothing_takes_for_ever_unless_there_is_nothing_to_move() {
        assert_eq!(BytesPerSec(0).time_for(Bytes(1)), Duration::MAX);
        assert_eq!(BytesPerSec(0).time_for(Bytes(0)), Duration::ZERO);
        assert_eq!(BytesPerSec(1000).time_for(Bytes(500)), Duration::from_millis(500));
    }
}
