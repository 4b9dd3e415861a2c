//! Provides how much memory this process takes.

/// What was planned of a run's memory, in its directory.
pub(crate) const MEMORY_FILE: &str = "memory.json";

/// Resident memory in bytes; zero where the system does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Now.
    pub rss_bytes: u64,
    /// At most so far.
    pub peak_rss_bytes: u64,
}

impl Memory {
    /// Reads `/proc/self/status`.
    pub fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            kib.unwrap_or(0) * 1024
        };
        Self {
            rss_bytes: field("VmRSS:"),
            peak_rss_bytes: field("VmHWM:"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Memory;

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_takes_between_a_megabyte_and_a_terabyte() {
        let memory = Memory::now();
        assert!((1 << 20..1 << 40).contains(&memory.rss_bytes));
        assert!(memory.peak_rss_bytes >= memory.rss_bytes);
    }
}
