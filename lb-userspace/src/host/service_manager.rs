//! What the service manager is told, where one listens: systemd with `Type=notify`.

use sd_notify::NotifyState;
use tracing::warn;

/// This process serves.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// This process stops serving.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// The service's main process is from now on the one with this id, and this one is about to end.
pub fn main_process_is(pid: u32) {
    tell(&[NotifyState::MainPid(pid)]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "the service manager could not be told");
    }
}
