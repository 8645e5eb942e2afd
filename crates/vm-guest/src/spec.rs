//! What the built-in guest is to do: `builtin:dirty,pages=1024,rate=max,...`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use migpipe_units::{Bytes, Pages};
use thiserror::Error;

const MIB: u64 = 1 << 20;
/// Memory that the guest needs beside what the options ask for: the first MiB, its image with the
/// stacks.
const IMAGE_AND_STACKS: Bytes = Bytes(4 * MIB);
/// The largest amount that an option may name (1 TiB in pages, in MiB), so that no sum overflows
/// in the guest.
const MOST_PAGES: u64 = 1 << 28;
const MOST_MIB: u64 = 1 << 20;
/// The highest rate that can be asked for, in pages per second.
const HIGHEST_RATE: u64 = 1_000_000_000;
/// The longest time between two ticks, in milliseconds.
const LONGEST_TICK: u64 = 3_600_000;
/// The shortest and the longest time between two empty lines, in microseconds.
const SHORTEST_BEAT: u64 = 100;
const LONGEST_BEAT: u64 = 1_000_000;

/// How fast the guest writes its hot pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// So many pages per second, over all vCPUs.
    PagesPerSecond(u64),
    /// As fast as it goes.
    Max,
}

/// What the memory holds that the guest fills and walks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Pseudo-random words.
    Random,
    /// Zeros, written by the guest.
    Zero,
    /// One 8-byte pattern throughout.
    Pattern,
}

/// What the built-in guest does. Read from `builtin:dirty,KEY=VALUE,...` by [`FromStr`]; every key
/// may be left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtySpec {
    /// `pages=N`: the hot working set (default 1024).
    pub pages: Pages,
    /// `rate=N|max`: hot pages written per second (default 1000).
    pub rate: Rate,
    /// `fill=random|zero|pattern`: what the walked memory holds (default random).
    pub fill: Fill,
    /// `fill-mb=M`: how much memory is filled and walked, in whole MiB (default 64 MiB).
    pub fill_memory: Bytes,
    /// `seed=S`: what random content is made from (default 1).
    pub seed: u64,
    /// `tick-ms=T`: time between two tick lines, in whole milliseconds (default 100 ms).
    pub tick: Duration,
    /// `run-ticks=N`: power off after so many ticks (default: never).
    pub run_ticks: Option<u64>,
    /// `beat-us=U`: time between two empty lines, in whole microseconds, for whoever takes the time
    /// of a pause from outside (default: none).
    pub beat: Option<Duration>,
    /// `idle=sleep|spin`: what a vCPU does that has nothing to do (default sleep). Only vmrun has a
    /// port to sleep at: a comparison with another hypervisor spins under both.
    pub idle: Idle,
}

/// What a vCPU does that has nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Idle {
    /// It sleeps at vmrun's idle port.
    #[default]
    Sleep,
    /// It waits and keeps its CPU busy.
    Spin,
}

/// Why a text does not say what the built-in guest is to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpecError {
    /// It names no built-in guest.
    #[error("'{0}' is no built-in guest: write builtin:dirty,pages=1024,rate=max or builtin:idle")]
    NotBuiltin(String),
    /// A word has no `=`.
    #[error("'{0}' is no option of the built-in guest: write KEY=VALUE with one of {KEYS}")]
    NotAnOption(String),
    /// A key that the guest does not have.
    #[error("the built-in guest has no option '{0}'; it has {KEYS}")]
    UnknownKey(String),
    /// A key that is there twice.
    #[error("option '{0}' of the built-in guest is given twice")]
    Twice(String),
    /// A value that its key cannot have.
    #[error("'{value}' is no value for option '{key}' of the built-in guest: write {wanted}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// What was written.
        value: String,
        /// What could have been.
        wanted: &'static str,
    },
}

/// All keys, as error texts list them.
const KEYS: &str = "pages, rate, fill, fill-mb, seed, tick-ms, run-ticks, beat-us, idle";

impl Default for DirtySpec {
    fn default() -> Self {
        Self {
            pages: Pages(1024),
            rate: Rate::PagesPerSecond(1000),
            fill: Fill::Random,
            fill_memory: Bytes(64 * MIB),
            seed: 1,
            tick: Duration::from_millis(100),
            run_ticks: None,
            beat: None,
            idle: Idle::Sleep,
        }
    }
}

impl DirtySpec {
    /// `builtin:idle`: ticks and nothing else.
    pub fn idle() -> Self {
        Self {
            pages: Pages(0),
            rate: Rate::PagesPerSecond(0),
            fill_memory: Bytes(0),
            ..Self::default()
        }
    }

    /// How much memory a guest must have for this at least: the hot pages with their table, the
    /// filled memory, the image.
    pub fn memory_needed(&self) -> Bytes {
        let table = Bytes(self.pages.0 * 8).pages();
        self.pages.bytes() + table.bytes() + self.fill_memory + IMAGE_AND_STACKS
    }

    /// The command line that the guest reads: this, and what only the machine knows, the number of
    /// vCPUs and the frequency of their TSC in kHz.
    pub fn command_line(&self, cpus: u32, tsc_khz: u32) -> String {
        let ticks = self.run_ticks.unwrap_or(0);
        format!(
            "pages={} rate={} fill={} fill-mb={} seed={} tick-ms={} run-ticks={ticks} beat-us={} idle={} cpus={cpus} tsc-khz={tsc_khz}",
            self.pages.0,
            self.rate,
            self.fill,
            self.fill_memory.0 / MIB,
            self.seed,
            self.tick.as_millis(),
            self.beat.map_or(0, |beat| beat.as_micros()),
            self.idle,
        )
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), SpecError> {
        let number = |key, wanted, least: u64, most: u64| {
            let number = value.parse().ok();
            number
                .filter(|number| (least..=most).contains(number))
                .ok_or_else(|| SpecError::BadValue { key, value: value.to_owned(), wanted })
        };
        match key {
            "pages" => self.pages = Pages(number("pages", "a number of pages", 0, MOST_PAGES)?),
            "rate" if value == "max" => self.rate = Rate::Max,
            "rate" => {
                let wanted = "a number of pages per second, or max";
                self.rate = Rate::PagesPerSecond(number("rate", wanted, 0, HIGHEST_RATE)?);
            }
            "fill" => {
                self.fill = match value {
                    "random" => Fill::Random,
                    "zero" => Fill::Zero,
                    "pattern" => Fill::Pattern,
                    _ => {
                        return Err(SpecError::BadValue {
                            key: "fill",
                            value: value.to_owned(),
                            wanted: "random, zero or pattern",
                        });
                    }
                }
            }
            "fill-mb" => {
                let mib = number("fill-mb", "a number of MiB", 0, MOST_MIB)?;
                self.fill_memory = Bytes(mib * MIB);
            }
            "seed" => self.seed = number("seed", "a number below 2^64", 0, u64::MAX)?,
            "tick-ms" => {
                let wanted = "a number of milliseconds from 1 to 3600000";
                self.tick = Duration::from_millis(number("tick-ms", wanted, 1, LONGEST_TICK)?);
            }
            "run-ticks" => {
                let ticks = number("run-ticks", "a number of ticks from 1", 1, u64::MAX)?;
                self.run_ticks = Some(ticks);
            }
            "beat-us" => {
                let wanted = "a number of microseconds from 100 to 1000000";
                let beat = number("beat-us", wanted, SHORTEST_BEAT, LONGEST_BEAT)?;
                self.beat = Some(Duration::from_micros(beat));
            }
            "idle" => {
                self.idle = match value {
                    "sleep" => Idle::Sleep,
                    "spin" => Idle::Spin,
                    _ => {
                        let (value, wanted) = (value.to_owned(), "sleep or spin");
                        return Err(SpecError::BadValue { key: "idle", value, wanted });
                    }
                }
            }
            _ => return Err(SpecError::UnknownKey(key.to_owned())),
        }
        Ok(())
    }
}

impl FromStr for DirtySpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.split(',');
        let mut spec = match words.next() {
            Some("builtin:dirty") => Self::default(),
            Some("builtin:idle") => Self::idle(),
            _ => return Err(SpecError::NotBuiltin(text.to_owned())),
        };
        let mut seen = Vec::new();
        for word in words {
            let Some((key, value)) = word.split_once('=') else {
                return Err(SpecError::NotAnOption(word.to_owned()));
            };
            if seen.contains(&key) {
                return Err(SpecError::Twice(key.to_owned()));
            }
            spec.set(key, value)?;
            seen.push(key);
        }
        Ok(spec)
    }
}

/// As [`FromStr`] reads it, with every key.
impl fmt::Display for DirtySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "builtin:dirty,pages={},rate={},fill={},fill-mb={},seed={},tick-ms={}",
            self.pages.0,
            self.rate,
            self.fill,
            self.fill_memory.0 / MIB,
            self.seed,
            self.tick.as_millis(),
        )?;
        if let Some(ticks) = self.run_ticks {
            write!(f, ",run-ticks={ticks}")?;
        }
        if let Some(beat) = self.beat {
            write!(f, ",beat-us={}", beat.as_micros())?;
        }
        match self.idle {
            Idle::Sleep => Ok(()),
            Idle::Spin => f.write_str(",idle=spin"),
        }
    }
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sleep => "sleep",
            Self::Spin => "spin",
        })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PagesPerSecond(rate) => rate.fmt(f),
            Self::Max => f.write_str("max"),
        }
    }
}

impl fmt::Display for Fill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Random => "random",
            Self::Zero => "zero",
            Self::Pattern => "pattern",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read_and_shown_again() {
        let text = "builtin:dirty,pages=7,rate=max,fill=zero,fill-mb=3,seed=9,tick-ms=50,run-ticks=4,\
             beat-us=500,idle=spin";
        let spec: DirtySpec = text.parse().unwrap();
        assert_eq!(
            spec,
            DirtySpec {
                pages: Pages(7),
                rate: Rate::Max,
                fill: Fill::Zero,
                fill_memory: Bytes(3 << 20),
                seed: 9,
                tick: Duration::from_millis(50),
                run_ticks: Some(4),
                beat: Some(Duration::from_micros(500)),
                idle: Idle::Spin,
            }
        );
        assert_eq!(spec.to_string(), text);
    }

    #[test]
    fn the_default_survives_being_shown_and_read() {
        let spec = DirtySpec::default();
        assert_eq!(spec.to_string().parse(), Ok(spec.clone()));
        assert_eq!("builtin:dirty".parse(), Ok(spec));
        assert_eq!("builtin:idle".parse(), Ok(DirtySpec::idle()));
    }

    #[test]
    fn an_unknown_key_is_named_together_with_the_keys_there_are() {
        let error = "builtin:dirty,page=1".parse::<DirtySpec>().unwrap_err();
        assert_eq!(error, SpecError::UnknownKey("page".into()));
        let text = error.to_string();
        assert!(text.contains("'page'") && text.contains(KEYS), "{text}");
    }

    #[test]
    fn a_value_out_of_range_is_refused_with_what_could_be_written() {
        for word in [
            "pages=-1",
            "pages=268435457",
            "rate=fast",
            "fill=noise",
            "fill-mb=1G",
            "seed=",
            "tick-ms=0",
            "run-ticks=0",
            "beat-us=99",
            "idle=halt",
        ] {
            let error = format!("builtin:dirty,{word}").parse::<DirtySpec>();
            let (key, value) = word.split_once('=').unwrap();
            match error {
                Err(SpecError::BadValue { key: k, value: v, .. }) => {
                    assert_eq!((k, v.as_str()), (key, value))
                }
                other => panic!("{word}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_key_given_twice_and_a_word_without_a_value_are_refused() {
        assert_eq!(
            "builtin:dirty,seed=1,seed=2".parse::<DirtySpec>(),
            Err(SpecError::Twice("seed".into()))
        );
        assert_eq!(
            "builtin:dirty,max".parse::<DirtySpec>(),
            Err(SpecError::NotAnOption("max".into()))
        );
        assert!(matches!("vmlinuz".parse::<DirtySpec>(), Err(SpecError::NotBuiltin(_))));
    }

    #[test]
    fn the_command_line_carries_what_only_the_machine_knows() {
        let line = DirtySpec::default().command_line(2, 2_800_000);
        assert_eq!(
            line,
            "pages=1024 rate=1000 fill=random fill-mb=64 seed=1 tick-ms=100 run-ticks=0 \
             beat-us=0 idle=sleep cpus=2 tsc-khz=2800000"
        );
    }
}
