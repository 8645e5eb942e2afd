//! The command line: `key=value` words, as vm-guest's `DirtySpec` and vmrun write them.

/// What fills the memory that is only walked.
#[derive(Clone, Copy)]
pub enum Fill {
    Random,
    Zero,
    Pattern,
}

#[derive(Clone, Copy)]
pub struct Options {
    pub pages: u64,
    /// Pages per second over all vCPUs; `None` is as fast as it goes.
    pub rate: Option<u64>,
    pub fill: Fill,
    pub fill_mb: u64,
    pub seed: u64,
    pub tick_ms: u64,
    /// Power off after this many ticks; 0 is never.
    pub run_ticks: u64,
    /// Time between two empty lines; 0 is none.
    pub beat_us: u64,
    /// Whether a vCPU that has nothing to do waits without giving its CPU away.
    pub spin: bool,
    pub cpus: u32,
    pub tsc_khz: u64,
}

impl Options {
    /// Reads what it knows and leaves the rest: the checks are vmrun's.
    pub fn parse(line: &[u8]) -> Self {
        let mut options = Self {
            pages: 0,
            rate: Some(0),
            fill: Fill::Random,
            fill_mb: 0,
            seed: 0,
            tick_ms: 100,
            run_ticks: 0,
            beat_us: 0,
            spin: false,
            cpus: 1,
            tsc_khz: 1_000_000,
        };
        for word in line.split(|&byte| byte == b' ') {
            let Some(equals) = word.iter().position(|&byte| byte == b'=') else {
                continue;
            };
            let (key, value) = (&word[..equals], &word[equals + 1..]);
            match key {
                b"pages" => options.pages = number(value),
                b"rate" => options.rate = (value != b"max").then(|| number(value)),
                b"fill" => {
                    options.fill = match value {
                        b"zero" => Fill::Zero,
                        b"pattern" => Fill::Pattern,
                        _ => Fill::Random,
                    }
                }
                b"fill-mb" => options.fill_mb = number(value),
                b"seed" => options.seed = number(value),
                b"tick-ms" => options.tick_ms = number(value).max(1),
                b"beat-us" => options.beat_us = number(value),
                b"idle" => options.spin = value == b"spin",
                b"run-ticks" => options.run_ticks = number(value),
                b"cpus" => {
                    options.cpus = number(value).clamp(1, crate::boot::MAX_CPUS as u64) as u32
                }
                b"tsc-khz" => options.tsc_khz = number(value).max(1000),
                _ => {}
            }
        }
        options
    }
}

fn number(digits: &[u8]) -> u64 {
    digits
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .fold(0, |sum, byte| sum * 10 + u64::from(byte - b'0'))
}
