//! The packet log: what the program says of each packet, where `xdp.packet_log` is on.

use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::task::JoinHandle;

/// How often the program's ring buffer is emptied: seldom enough to cost nothing, often enough to read along.
const PERIOD: Duration = Duration::from_millis(50);

/// Starts a task that passes the program's lines on to the daemon's log, at level info.
///
/// # Errors
///
/// When the object has no log, or its ring buffer cannot be mapped.
pub fn spawn(ebpf: &mut Ebpf) -> Result<JoinHandle<()>, aya_log::Error> {
    let mut logger = EbpfLogger::init(ebpf)?;
    Ok(tokio::spawn(async move {
        let mut period = tokio::time::interval(PERIOD);
        loop {
            period.tick().await;
            logger.flush();
        }
    }))
}
