//! The signals that the daemon heeds, and those that must not kill it.

use futures_util::FutureExt as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::warn;

use super::StartError;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// To stop; the signal's name.
    Stop(&'static str),
    /// To read the configuration again.
    Reload,
}

/// The signals, caught from the first moment on.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// What operators send to other daemons to dump their state; dying of it would take the service down.
    ignored: [Signal; 2],
}

impl Signals {
    /// Catches them.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn new() -> Result<Self, StartError> {
        let listen = |kind| signal(kind).map_err(StartError::Signals);
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
            ignored: [listen(SignalKind::user_defined1())?, listen(SignalKind::user_defined2())?],
        })
    }

    /// The next thing that is asked for.
    pub async fn next(&mut self) -> Event {
        let Self { terminate, interrupt, hangup, ignored: [user1, user2] } = self;
        loop {
            tokio::select! {
                _ = terminate.recv() => return Event::Stop("SIGTERM"),
                _ = interrupt.recv() => return Event::Stop("SIGINT"),
                _ = hangup.recv() => return Event::Reload,
                _ = user1.recv() => warn!("SIGUSR1 ignored: `evenkeel status` shows the state"),
                _ = user2.recv() => warn!("SIGUSR2 ignored: `evenkeel status` shows the counters"),
            }
        }
    }

    /// Whether a signal has come that asks to stop.
    pub async fn is_told_to_stop(&mut self) -> bool {
        // Signals are told of by the runtime, which must have its turn for that.
        tokio::task::yield_now().await;
        self.stop().now_or_never().is_some()
    }

    /// The name of the signal that asks to stop; a reload before the start is complete is one for nothing.
    pub async fn stop(&mut self) -> &'static str {
        loop {
            if let Event::Stop(name) = self.next().await {
                return name;
            }
        }
    }
}
