//! Another process takes this daemon's place: `evenkeel restart`. Until that one serves, this one can go on.

use std::time::{Duration, Instant};

use lb_common::net::Protocol;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::attaching::{attach_program, interfaces};
use super::signals::Signals;
use super::successor::{Successor, Word};
use super::{Daemon, End, FAREWELL, StartError, set_ways, tables};
use crate::control::protocol::Response;
use crate::datapath::xdp::XdpDatapath;
use crate::datapath::xdp::attach;
use crate::datapath::xdp::pins::Keep;
use crate::datapath::xdp::table::task::Scan;
use crate::error::chain;
use crate::handover::{Drain, Lost, Message};
use crate::host::{link, service_manager};
use crate::model::Service;
use crate::reconcile::desired::{Desired, Selector};

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
                let handed = successor.hand_over(&self.listener, drains(&self.desired, Instant::now()));
                let word = match handed {
                    Ok(()) => successor.next().await,
                    Err(error) => Word::Failed(error.to_string()),
                };
                match word {
                    Word::Said(Message::Serving { lost }) => {
                        self.part(successor, lost);
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
        if self.scan.is_none() {
            // Whatever it has half done in the tables or on the interfaces is done anew.
            match self.thaw().await {
                Ok(()) => warn!("this daemon goes on"),
                Err(error) => error!(error = chain(&error), "this daemon goes on, but not everything is in order"),
            }
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
    }

    /// Goes on after [`Daemon::freeze`], whatever another process has done meanwhile.
    async fn thaw(&mut self) -> Result<(), StartError> {
        self.instance.read_journal()?;
        let tables = self.go_on();
        let attached = self.attach_again().await;
        self.scan = Some(Scan::start(&self.datapath, self.made.constants())?);
        self.start_tasks()?;
        tables.and(attached)
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
        let mode = attach::mode_for(&host, &links, self.config.xdp.mode);
        let in_place = attach::can_replace(&links, mode, self.instance.pins());
        let stay = if in_place { links.as_slice() } else { &[] };
        self.instance.pins().clear(&Keep { links: stay.iter().map(|link| link.index).collect(), maps: true })?;
        // The maps that are pinned may be the other process's.
        let made = tables::Made { are_adopted: false, ..self.made.clone() };
        self.attachments =
            attach_program(&self.config, &mut self.instance, &mut self.datapath, &made, (&host, &links))?;
        Ok(())
    }

    /// The other one serves.
    fn part(&mut self, mut successor: Successor, lost: Option<Lost>) {
        let pid = successor.pid();
        service_manager::main_process_is(pid);
        info!(pid, "another process has taken this one's place");
        successor.answer(Response::Restarted { pid, lost });
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

/// Tells the process that has taken this one's place to stop, as this one was told meanwhile.
fn pass_on(pid: u32) {
    let result = i32::try_from(pid).map_err(|_| Errno::ESRCH).and_then(|pid| kill(Pid::from_raw(pid), Signal::SIGTERM));
    if let Err(error) = result {
        error!(%error, pid, "the signal to stop was not passed on");
    }
}

/// What operators have drained, as of `now`.
fn drains(desired: &Desired, now: Instant) -> Vec<Drain> {
    let drains = desired.drains().map(|((service, real_server), until)| Drain {
        virtual_server: service.address,
        protocol: service.protocol as u8,
        real_server,
        milliseconds: until
            .map(|until| u64::try_from(until.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX)),
    });
    drains.collect()
}

/// Drains what was drained in the daemon before, as far as it is still there.
pub(super) fn drain_again(desired: &mut Desired, drains: &[Drain], now: Instant) {
    for Drain { virtual_server, protocol, real_server, milliseconds } in drains {
        let Some(protocol) = Protocol::from_number(*protocol) else { continue };
        let service = Some(Service { address: *virtual_server, protocol });
        let selector = Selector { ip: real_server.ip(), port: Some(real_server.port()), service };
        desired.drain(&selector, milliseconds.map(Duration::from_millis), now);
    }
}
