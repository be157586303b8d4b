//! Whether the machine has the memory that a measurement takes.

use std::fs;

use anyhow::{Context as _, Result};

/// Bytes that the kernel takes for a flow in an LRU_HASH, rounded up: element 72, hash bucket 16 to 32, tuple 20.
const LRU_BYTES: u64 = 160;

/// Bytes that everything else may take.
const MARGIN: u64 = 1 << 30;

/// Why an LRU_HASH of `flows` flows can't be had beside our own table; `None` if it can.
pub fn objection(flows: u32) -> Result<Option<String>> {
    let text = fs::read_to_string("/proc/meminfo").context("can't read /proc/meminfo")?;
    let available = available(&text).context("/proc/meminfo has no line MemAvailable")?;
    let needed = u64::from(flows) * LRU_BYTES + MARGIN;
    let megabytes = |bytes: u64| bytes >> 20;
    let (has, wants) = (megabytes(available), megabytes(needed));
    Ok((available < needed).then(|| format!("it takes {wants} MB with a margin, and {has} MB are available")))
}

/// Bytes available, from the text of /proc/meminfo.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_kilobytes() {
        let text = "MemTotal:       24683676 kB\nMemFree:        23517004 kB\nMemAvailable:   24197120 kB\n";
        assert_eq!(available(text), Some(24_197_120 * 1024));
        assert_eq!(available("MemTotal: 1 kB"), None);
    }
}
