//! Provides how much memory of the device is free: what the end of a stream does not say.

use std::path::Path;

use crate::{Error, Result};

/// What Linux says about the host's memory.
const MEMINFO: &str = "/proc/meminfo";

/// Says how much memory a device has.
pub trait DeviceMemory: Send {
    /// Bytes free and in total; `None` where the system does not say, and only a try can tell.
    ///
    /// # Errors
    /// What the device says.
    fn free_and_total(&self) -> Result<Option<(u64, u64)>>;
}

/// The host's memory, which on the CPU plays the card's part.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostMemory;

impl DeviceMemory for HostMemory {
    fn free_and_total(&self) -> Result<Option<(u64, u64)>> {
        let path = Path::new(MEMINFO);
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        Ok(parse(&text))
    }
}

/// `MemAvailable` and `MemTotal`, in bytes.
fn parse(meminfo: &str) -> Option<(u64, u64)> {
    let bytes = |key: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
        let kibibytes = line.trim().strip_suffix("kB")?.trim();
        kibibytes.parse::<u64>().ok()?.checked_mul(1024)
    };
    Some((bytes("MemAvailable:")?, bytes("MemTotal:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_bytes_and_nonsense_says_nothing() {
        let text = "MemTotal:       16384 kB\nMemFree:  1 kB\nMemAvailable:    1024 kB\n";
        assert_eq!(parse(text), Some((1 << 20, 16 << 20)));
        assert_eq!(parse("MemTotal: 1 kB\n"), None);
        assert_eq!(parse("MemTotal: 1 kB\nMemAvailable: many kB\n"), None);
    }
}
