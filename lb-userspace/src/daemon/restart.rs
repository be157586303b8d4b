//! Another process takes this daemon's place: `evenkeel restart`. Until that one serves, this one can go on.

use std::time::Instant;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::attaching::{attach_program, interfaces};
use super::signals::Signals;
use super::state::State;
use super::successor::{Successor, Word};
use super::{Daemon, End, FAREWELL, StartError, set_ways, tables};
use crate::control::protocol::Response;
use crate::datapath::xdp::XdpDatapath;
use crate::datapath::xdp::attach::Attachment;
use crate::datapath::xdp::table::task::Scan;
use crate::error::chain;
use crate::handover::{Arrival, Message};
use crate::host::{link, service_manager};

impl Daemon {
    /// Starts a process that is to take this one's place; `answer` is told what became of it.
    pub(super) fn restart(&mut self, answer: oneshot::Sender<Response>) {
        let refusal = if self.successor.is_some() {
            "a restart is under way already".to_owned()
        } else if std::process::id() == 1 {
            // A container ends with its first process, whoever else is in it.
            "this daemon is the first process of its container, which would end with it; end it by `evenkeel stop --keep` \
             and start another, which goes on with its connections"
                .to_owned()
        } else {
            match self.instance.locks().and_then(|locks| Successor::start(&self.command_line, &locks)) {
                Ok(mut successor) => {
                    info!(pid = successor.pid(), "another process prepares to take this one's place");
                    successor.asked_by(answer);
                    self.successor = Some(successor);
                    return;
                }
                Err(error) => format!("cannot start {}: {error}", self.command_line),
            }
        };
        // The caller may have hung up.
        drop(answer.send(Response::Error(refusal)));
    }

    /// What `successor` has said: true where this daemon's place is taken, and nothing is left for it to do.
    pub(super) async fn hear(&mut self, mut successor: Successor, word: Word) -> bool {
        let why = match word {
            Word::Said(Message::Ready) => {
                self.freeze().await;
                let handed = successor.hand_over(&self.listener, State::of(&self.desired, Instant::now()));
                let word = match handed {
                    Ok(()) => successor.next().await,
                    Err(error) => Word::Failed(error.to_string()),
                };
                match word {
                    Word::Said(Message::Serving(arrival)) => {
                        self.part(successor, arrival);
                        return true;
                    }
                    Word::Said(other) => format!("it said {other:?}"),
                    Word::Failed(why) => why,
                }
            }
            Word::Said(other) => format!("it said {other:?}"),
            Word::Failed(why) => why,
        };
        successor.end().await;
        if !self.frozen.is_empty() {
            // Whatever it has half done in the tables or on the interfaces is done anew.
            self.thaw().await;
        }
        error!(error = why, "not restarted");
        successor.answer(Response::Error(format!("not restarted, the daemon goes on as before: {why}")));
        false
    }

    /// Changes nothing any more.
    async fn freeze(&mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
            // It has ended, by itself or by the line above.
            drop(task.await);
        }
        self.scan = None;
        self.frozen = Frozen::ALL.map(|part| (part, None)).to_vec();
    }

    /// Goes on after [`Daemon::freeze`], whatever another process has done meanwhile. What fails is tried again at the next
    /// call, and hinders nothing else.
    pub(super) async fn thaw(&mut self) {
        for (part, said) in std::mem::take(&mut self.frozen) {
            let Err(error) = self.thaw_part(part).await else { continue };
            let why = Some(chain(&error));
            if let Some(error) = why.as_ref().filter(|_| why != said) {
                error!(error, part = part.name(), "this does not go on yet; tried again every 10 s");
            }
            self.frozen.push((part, why));
        }
        if self.frozen.is_empty() {
            warn!("this daemon goes on");
        }
    }

    async fn thaw_part(&mut self, part: Frozen) -> Result<(), StartError> {
        match part {
            Frozen::Journal => self.instance.read_journal()?,
            Frozen::Tables => self.go_on()?,
            Frozen::Interfaces => self.attach_again().await?,
            Frozen::Scan => self.scan = Some(Scan::start(&self.datapath, self.made.constants())?),
            Frozen::Tasks => self.start_tasks()?,
        }
        Ok(())
    }

    /// Whether the tables are known to be as this daemon has them in mind, so that it may write into them.
    pub(super) fn may_write(&self) -> bool {
        self.frozen.iter().all(|(part, _)| *part != Frozen::Tables)
    }

    fn go_on(&mut self) -> Result<(), StartError> {
        self.datapath.read_back(self.made.options.timeouts)?;
        let (table, resolution) = (self.desired.table(Instant::now()), &self.resolution);
        let ways = |datapath: &mut XdpDatapath| {
            datapath.set_own_addresses(&resolution.addresses)?;
            set_ways(datapath, resolution, &self.config.xdp)
        };
        tables::go_on(&mut self.datapath, &self.made, &table, ways)
    }

    /// The program of this daemon is on the interfaces, its maps are pinned.
    async fn attach_again(&mut self) -> Result<(), StartError> {
        let handle = link::connect().map_err(StartError::Netlink)?;
        let host = link::links(&handle).await?;
        let links = interfaces(&self.config, &self.instance, &host)?;
        // The maps that are pinned may be the other process's.
        let made = tables::Made { are_adopted: false, ..self.made.clone() };
        let attached = attach_program(&self.config, &mut self.instance, &mut self.datapath, &made, (&host, &links))?;
        // Those that are gone are still waited for.
        let is_gone = |one: &Attachment| attached.iter().all(|attachment| attachment.interface != one.interface);
        let gone: Vec<Attachment> = std::mem::take(&mut self.attachments).into_iter().filter(is_gone).collect();
        self.attachments = attached.into_iter().chain(gone).collect();
        Ok(())
    }

    /// The other one serves.
    fn part(&mut self, mut successor: Successor, arrival: Arrival) {
        let pid = successor.pid();
        service_manager::main_process_is(pid);
        info!(
            pid,
            version = arrival.version,
            executable = %arrival.executable.display(),
            "another process has taken this one's place"
        );
        successor.answer(Response::Restarted { pid, arrival });
        successor.release();
    }

    /// The daemon ends, in whatever way.
    pub(super) async fn end(mut self, end: End, signals: &mut Signals) {
        drop(self.successor.take());
        self.freeze().await;
        if let Some(task) = &self.packet_log {
            task.abort();
        }
        while let Ok((_, answer)) = self.calls.try_recv() {
            let text = match end {
                End::Withdraw | End::Leave => "the daemon is stopping",
                End::Succeeded(_) => "the daemon has just been restarted; ask again",
            };
            drop(answer.send(Response::Error(text.to_owned())));
        }
        let (alive, mut conversations) = self.conversations;
        drop(alive);
        // One that has not asked yet is not waited for.
        drop(tokio::time::timeout(FAREWELL, conversations.recv()).await);
        match end {
            End::Withdraw => service_manager::stopping(),
            End::Leave => {
                service_manager::stopping();
                self.instance.leave();
            }
            End::Succeeded(pid) => {
                self.instance.leave();
                if signals.is_told_to_stop().await {
                    info!(pid, "passing on the signal to stop");
                    pass_on(pid);
                }
            }
        }
    }
}

/// What a daemon stops while another process may be about to take its place, in the order in which it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frozen {
    /// Reading what the other one has changed on the host.
    Journal,
    /// Reading back the tables, and writing into them.
    Tables,
    /// Having the program on the interfaces.
    Interfaces,
    /// The scan of the connection table.
    Scan,
    /// The control socket and the watch over next hops.
    Tasks,
}

impl Frozen {
    const ALL: [Self; 5] = [Self::Journal, Self::Tables, Self::Interfaces, Self::Scan, Self::Tasks];

    const fn name(self) -> &'static str {
        match self {
            Self::Journal => "journal of changes",
            Self::Tables => "tables",
            Self::Interfaces => "program on the interfaces",
            Self::Scan => "scan of the connection table",
            Self::Tasks => "control socket and next hops",
        }
    }
}

/// Tells the process that has taken this one's place to stop, as this one was told meanwhile.
fn pass_on(pid: u32) {
    let result = i32::try_from(pid).map_err(|_| Errno::ESRCH).and_then(|pid| kill(Pid::from_raw(pid), Signal::SIGTERM));
    if let Err(error) = result {
        error!(%error, pid, "the signal to stop was not passed on");
    }
}
