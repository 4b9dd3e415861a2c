//! Provides the plan as people and programs read it: the parts, what fits, and what each setting buys.

use std::fmt;

use candle_core::Device;
use distill_model::free_and_total;
use serde::Serialize;

use super::{
    choices::{Choice, choices},
    config::{Place, PlanConfig},
    modes::{Mode, Processes, Sharing},
    pair::Pair,
    part::Process,
    speed::{HOST_SECONDS, Speed, speeds},
};
use crate::Result;

/// Lengths of the second table, as multiples of the one that was asked for.
const LENGTHS: [usize; 4] = [1, 2, 4, 8];

/// What a pair takes under some settings, and what would change it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlanReport {
    /// Where the work is done.
    pub place: Place,
    /// The teacher's name.
    pub teacher: Option<String>,
    /// The student's name.
    pub student: String,
    /// Tokens of a sequence.
    pub seq_len: usize,
    /// Sequences of a pass of the trainer.
    pub batch_size: usize,
    /// Every part of both processes.
    pub processes: Processes,
    /// The memory of the card, or of the machine.
    pub memory_bytes: u64,
    /// What of it is left to others.
    pub reserve_bytes: u64,
    /// The ways to share it.
    pub modes: Vec<Mode>,
    /// Peaks at longer sequences.
    pub lengths: Vec<Length>,
    /// What each setting buys, of the first mode's peak.
    pub choices: Vec<Choice>,
    /// How fast both would be on an RTX 4090, estimated; empty on the CPU.
    pub speeds: Vec<Speed>,
}

/// The peaks at one length, in the order of the modes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Length {
    /// Tokens of a sequence.
    pub seq_len: usize,
    /// One for every mode.
    pub peak_bytes: Vec<u64>,
}

impl PlanReport {
    /// Adds everything up.
    ///
    /// # Errors
    /// Adapters that cannot be read, or a pattern whose matching does not end in time.
    pub fn new(pair: &Pair, config: &PlanConfig) -> Result<Self> {
        let processes = Processes::new(pair, config)?;
        let options = &config.options;
        let memory_bytes = match config.place() {
            Place::Card => options.vram_mib << 20,
            Place::Cpu => match options.ram_mib {
                Some(mib) => mib << 20,
                None => free_and_total(&Device::Cpu)?.map_or(0, |memory| memory.total_bytes),
            },
        };
        let reserve_bytes = options.reserve_mib << 20;
        let limit = memory_bytes.saturating_sub(reserve_bytes);
        let mode = |&sharing: &Sharing| {
            let peak = processes.peak(sharing).unwrap_or(0);
            Mode::new(sharing, pair, config, peak, limit)
        };
        Ok(Self {
            place: config.place(),
            teacher: pair.teacher.as_ref().map(|teacher| teacher.name.clone()),
            student: pair.student.name.clone(),
            seq_len: options.seq_len,
            batch_size: config.train.batch_size,
            modes: processes
                .sharings()
                .iter()
                .map(mode)
                .collect::<Result<_>>()?,
            lengths: lengths(pair, config)?,
            choices: choices(pair, config)?,
            speeds: match config.place() {
                Place::Card => speeds(pair, config)?,
                Place::Cpu => Vec::new(),
            },
            processes,
            memory_bytes,
            reserve_bytes,
        })
    }
}

fn lengths(pair: &Pair, config: &PlanConfig) -> Result<Vec<Length>> {
    let at = |times: usize| {
        let mut config = config.clone();
        config.options.seq_len *= times;
        let processes = Processes::new(pair, &config)?;
        let sharings = processes.sharings().iter();
        Ok(Length {
            seq_len: config.options.seq_len,
            peak_bytes: sharings
                .filter_map(|&sharing| processes.peak(sharing))
                .collect(),
        })
    };
    LENGTHS.into_iter().map(at).collect()
}

impl fmt::Display for PlanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let teacher = self.teacher.as_deref().unwrap_or("no teacher");
        writeln!(
            f,
            "{teacher} -> {}, {} tokens, batch {}; MiB\n",
            self.student, self.seq_len, self.batch_size
        )?;
        writeln!(f, "{:<8} {:<38} {:>8}  while", "process", "part", "MiB")?;
        for process in self
            .processes
            .teacher
            .iter()
            .chain([&self.processes.trainer])
        {
            write_process(f, process)?;
        }
        let limit = self.memory_bytes.saturating_sub(self.reserve_bytes);
        let (memory, reserve) = (mib(self.memory_bytes), mib(self.reserve_bytes));
        writeln!(f, "\nof {memory} MiB less a reserve of {reserve}:")?;
        writeln!(
            f,
            "{:<10} {:>8} {:>8}  {:<13} {:>14} {:>14}",
            "mode", "peak", "free", "", "longest", "largest batch"
        )?;
        for mode in &self.modes {
            let fits = if mode.fits { "fits" } else { "does not fit" };
            let more = if mode.longest_is_the_models { ">=" } else { "" };
            writeln!(
                f,
                "{:<10} {:>8} {:>8}  {fits:<13} {:>14} {:>14}",
                mode.sharing.name(),
                mib(mode.peak_bytes),
                signed_mib(limit as i64 - mode.peak_bytes as i64),
                format!("{more}{}", mode.longest_seq_len),
                mode.largest_batch_size,
            )?;
        }
        write!(f, "\n{:<10}", "tokens")?;
        for mode in &self.modes {
            write!(f, " {:>8}", mode.sharing.name())?;
        }
        writeln!(f)?;
        for length in &self.lengths {
            write!(f, "{:<10}", length.seq_len)?;
            for peak in &length.peak_bytes {
                write!(f, " {:>8}", mib(*peak))?;
            }
            writeln!(f)?;
        }
        let first = self.modes.first().map_or("", |mode| mode.sharing.name());
        writeln!(f, "\nwhat each setting changes of {first}:")?;
        for Choice {
            setting,
            bytes,
            effect,
        } in &self.choices
        {
            let sign = if *bytes > 0 { "+" } else { "" };
            let change = format!("{sign}{}", signed_mib(*bytes));
            writeln!(f, "  {setting:<45} {change:>8}  {effect}")?;
        }
        if self.speeds.is_empty() {
            return Ok(());
        }
        write_speeds(f, &self.speeds)
    }
}

/// What is said of speed, and what it stands on.
fn write_speeds(f: &mut fmt::Formatter<'_>, speeds: &[Speed]) -> fmt::Result {
    writeln!(
        f,
        "\nestimate, never timed: an RTX 4090 at its full figures, a host that takes {:.0} us for each launch and product",
        1e6 * HOST_SECONDS
    )?;
    writeln!(
        f,
        "{:<8} {:>8} {:>8} {:>10} {:>10} {:>8} {:>8} {:>10}",
        "process", "tokens", "TFLOP", "GB moved", "launches", "card ms", "host ms", "tokens/s"
    )?;
    for speed in speeds {
        writeln!(
            f,
            "{:<8} {:>8} {:>8.2} {:>10.1} {:>10} {:>8.0} {:>8.0} {:>10.0}",
            speed.process,
            speed.tokens,
            speed.flop as f64 / 1e12,
            speed.moved_bytes as f64 / 1e9,
            speed.operations,
            1e3 * speed.card_seconds,
            1e3 * speed.host_seconds,
            speed.tokens_per_second,
        )?;
    }
    if let [teacher, trainer] = speeds {
        let seconds = 1.0 / teacher.tokens_per_second + 1.0 / trainer.tokens_per_second;
        writeln!(
            f,
            "{:<72} {:>10.0}",
            "both on one card, one after the other",
            seconds.recip()
        )?;
    }
    Ok(())
}

/// A process's parts, and its peak below them; what is not there at the peak stands in brackets.
fn write_process(f: &mut fmt::Formatter<'_>, process: &Process) -> fmt::Result {
    for part in &process.parts {
        let phases: Vec<&str> = part.phases.iter().map(|phase| phase.name()).collect();
        let bytes = match process.is_at_peak(part) {
            true => mib(part.bytes),
            false => format!("({})", mib(part.bytes)),
        };
        let line = format!(
            "{:<8} {:<38} {bytes:>8}  {}",
            process.name,
            part.name,
            phases.join(", ")
        );
        writeln!(f, "{}", line.trim_end())?;
    }
    writeln!(
        f,
        "{:<8} {:<38} {:>8}  {}",
        process.name,
        "at its peak",
        mib(process.peak_bytes),
        process.peak_phase.name()
    )
}

fn mib(bytes: u64) -> String {
    signed_mib(bytes as i64)
}

fn signed_mib(bytes: i64) -> String {
    format!("{:.0}", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(config: &PlanConfig) -> PlanReport {
        PlanReport::new(&Pair::reference().unwrap(), config).unwrap()
    }

    #[test]
    fn the_reference_pair_fits_with_room_as_it_was_meant_to() {
        let report = report(&PlanConfig::default());
        let [resident, swap, cached] = report.modes.as_slice() else {
            panic!("{:?}", report.modes);
        };
        // The aims of the design: both processes at 512 tokens in 19 GiB, and 4096 tokens on the card.
        assert!(
            resident.peak_bytes < 19 << 30,
            "{}",
            mib(resident.peak_bytes)
        );
        assert!(
            resident.longest_seq_len >= 4096,
            "{}",
            resident.longest_seq_len
        );
        assert!(cached.peak_bytes < swap.peak_bytes && swap.peak_bytes < resident.peak_bytes);
        assert!(swap.longest_seq_len > resident.longest_seq_len);
        let four_thousand = report.lengths.iter().find(|length| length.seq_len == 4096);
        assert!(four_thousand.unwrap().peak_bytes[0] < 24 << 30);
    }

    #[test]
    fn the_table_says_what_fits_and_what_helps() {
        let mut config = PlanConfig::default();
        config.train.checkpointing = false;
        config.options.seq_len = 4096;
        let report = report(&config);
        assert!(!report.modes[0].fits && report.modes[0].free_bytes < 0);
        assert!(
            report
                .choices
                .iter()
                .any(|choice| choice.setting == "--checkpointing on")
        );
        let text = report.to_string();
        for expected in [
            "does not fit",
            "--lora-rank 8",
            "Qwen2.5-7B -> Qwen2.5-1.5B",
            "at its peak",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
    }

    #[test]
    fn a_program_reads_the_same_numbers() {
        let report = report(&PlanConfig::default());
        let json = serde_json::json!(report);
        let peak = json["modes"][0]["peak_bytes"].as_u64();
        assert_eq!(peak, Some(report.modes[0].peak_bytes));
        let parts = json["processes"]["trainer"]["parts"].as_array().unwrap();
        assert_eq!(parts.len(), report.processes.trainer.parts.len());
        assert_eq!(json["modes"][1]["sharing"], "swap");
    }
}
