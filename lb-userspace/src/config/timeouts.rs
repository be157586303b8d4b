//! `[timeouts]`: how long an idle connection is remembered.

use std::time::Duration;

use super::model::Timeouts;
use super::reader::Reader;
use super::report::Report;
use super::schema;

/// Why there are bounds, to durations that the packet path measures.
pub const CLOCK_HELP: &str =
    "the packet path tells time by a coarse clock of 16 bits: no shorter and no longer span fits";

/// Those of IPVS, which `ipvsadm --set` changes there.
impl Default for Timeouts {
    fn default() -> Self {
        Self { tcp: Duration::from_secs(900), tcp_fin: Duration::from_secs(120), udp: Duration::from_secs(300) }
    }
}

/// Reads `[timeouts]`; each value that is missing has its default.
pub fn read(root: &Reader<'_>, report: &mut Report<'_>) -> Timeouts {
    let default = Timeouts::default();
    let Some(table) = root.table("timeouts", &schema::TIMEOUTS, report) else { return default };
    let mut timeout = |key, default| table.duration(key, CLOCK_HELP, report).unwrap_or(default);
    Timeouts {
        tcp: timeout("tcp", default.tcp),
        tcp_fin: timeout("tcp_fin", default.tcp_fin),
        udp: timeout("udp", default.udp),
    }
}
