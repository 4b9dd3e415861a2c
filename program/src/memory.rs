//! Provides how much memory a process takes, and the return of what is freed to the system.

/// Gives freed memory back, where the allocator (glibc's) keeps it for later: reading a tokenizer and weights leaves tens of MiB in pieces that are
/// too small for what comes after.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "there is no safe interface")]
    // SAFETY: takes a number, and touches nothing but free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Resident memory in bytes; zero where the system does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Now.
    pub rss_bytes: u64,
    /// At most so far.
    pub peak_rss_bytes: u64,
}

impl Memory {
    /// Of this process.
    pub fn now() -> Self {
        Self::of(std::process::id())
    }

    /// Of a process, from `/proc/N/status`.
    pub fn of(process: u32) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{process}/status"));
        let status = status.unwrap_or_default();
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
