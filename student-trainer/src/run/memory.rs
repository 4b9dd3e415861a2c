//! Provides how much memory this process takes.

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
        let field = |name: &str| kib_field(&status, name) * 1024;
        Self {
            rss_bytes: field("VmRSS:"),
            peak_rss_bytes: field("VmHWM:"),
        }
    }
}

/// The machine's memory in bytes; zero where the system does not tell.
pub fn total_memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    kib_field(&text, "MemTotal:") * 1024
}

/// The number of KiB in the line of a file of `/proc` that begins with `name`; zero without one.
fn kib_field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{Memory, total_memory_bytes};

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_takes_between_a_megabyte_and_a_terabyte() {
        let memory = Memory::now();
        assert!((1 << 20..1 << 40).contains(&memory.rss_bytes));
        assert!(memory.peak_rss_bytes >= memory.rss_bytes);
        assert!(total_memory_bytes() > memory.rss_bytes);
    }
}
