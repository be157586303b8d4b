//! The demo: a lab, the daemon in its director, and a client that keeps asking.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use evenkeel_tests::lab::{self, Lab, Namespace, Process, address};

use crate::demo_config::{self, DemoConfig, Method};
use crate::demo_view::{Tally, View};
use crate::run::Demo;
use crate::shell::{self, Step};

/// How long the daemon may take until it answers `evenkeel status`.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// Twenty requests a second.
const PACE: Duration = Duration::from_millis(50);
/// A request without an answer for this long is an error.
const REQUEST_LIMIT: Duration = Duration::from_secs(1);
/// How long the daemon may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Runs until the time is over or a signal comes; an error unless every request was answered.
pub(crate) fn run(evenkeel: &Path, demo: &Demo) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    ctrlc::set_handler(move || stopped.store(true, Ordering::Relaxed)).context("can't catch signals")?;

    let lab = Lab::builder().quiet().real_servers(demo.real_servers).forwarding(demo.forwarding.lab()).build()?;
    println!(
        "lab {}: client, director and {} real servers, forwarding {}",
        lab.name(),
        demo.real_servers,
        demo.forwarding.name()
    );
    let files = Files::write(&lab, demo)?;
    Step::new(evenkeel).arg("check").arg(&files.config).run()?;
    let mut decapsulators = decapsulators(evenkeel, &lab, demo.forwarding)?;
    let mut daemon = Command::new(evenkeel);
    daemon.args(["run", "--config"]).arg(&files.config);
    eprintln!(
        "$ {}",
        lab.director().nsenter(&format!("{} run --config {}", evenkeel.display(), files.config.display()))
    );
    let mut daemon = lab.start(lab.director(), "evenkeel", daemon)?;
    wait_until_ready(evenkeel, &lab, &files, &mut daemon, &stop)?;
    for (decapsulator, real) in decapsulators.iter_mut().zip(lab.real_servers()) {
        wait_until_attached(decapsulator, real, &stop)?;
    }
    if !stop.load(Ordering::Relaxed) {
        print_what_to_try(evenkeel, &lab, &files, daemon.log_path());
    }

    let tally = traffic(&lab, demo, &mut daemon, &stop)?;
    println!("\n{}", tally.summary());
    end(daemon)?;
    if !tally.is_good() {
        bail!("{} of {} requests were not answered", tally.errors(), tally.requests());
    }
    Ok(())
}

/// What is written into the lab's folder, or will be by the daemon.
struct Files {
    config: PathBuf,
    socket: PathBuf,
}

impl Files {
    fn write(lab: &Lab, demo: &Demo) -> Result<Self> {
        let source = shell::root().join("configs/demo.toml");
        let template = fs::read_to_string(&source).with_context(|| format!("can't read {}", source.display()))?;
        let runtime = lab.directory().join("run");
        fs::create_dir(&runtime).with_context(|| format!("can't make {}", runtime.display()))?;
        let DemoConfig { text, instance } = demo_config::adjust(&template, demo, lab, &runtime)?;
        let config = lab.directory().join("demo.toml");
        fs::write(&config, text).with_context(|| format!("can't write {}", config.display()))?;
        Ok(Self { config, socket: runtime.join(format!("{instance}.sock")) })
    }

    fn status(&self, evenkeel: &Path) -> String {
        format!("{} status --socket {}", evenkeel.display(), self.socket.display())
    }
}

/// With tunnelling, the program on each real server that unpacks what the director packs.
fn decapsulators(evenkeel: &Path, lab: &Lab, method: Method) -> Result<Vec<Process>> {
    match method {
        Method::Nat | Method::Dr => return Ok(Vec::new()),
        Method::Tun => {}
    }
    let start = |real: &lab::RealServer| {
        let mut command = Command::new(evenkeel);
        command.args(["decap", "--interface", "eth0"]);
        for vip in address::vips() {
            command.arg("--vip").arg(vip.to_string());
        }
        lab.start(real.namespace(), &format!("decap-{}", real.name()), command)
    };
    lab.real_servers().iter().map(start).collect()
}

/// Waits until a real server's interface has an XDP program: what comes before that is lost.
fn wait_until_attached(decapsulator: &mut Process, real: &lab::RealServer, stop: &AtomicBool) -> Result<()> {
    let deadline = Instant::now() + READY_LIMIT;
    while !stop.load(Ordering::Relaxed) && !real.namespace().ip("-o link show dev eth0")?.contains(" xdp") {
        if let Some(status) = decapsulator.ended()? {
            bail!("`evenkeel decap` on {} ended ({status}); its log:\n{}", real.name(), decapsulator.log());
        }
        if Instant::now() >= deadline {
            bail!("no XDP program on {} within {READY_LIMIT:?}; its log:\n{}", real.name(), decapsulator.log());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Waits until the daemon answers `evenkeel status`, or somebody wants to stop.
fn wait_until_ready(evenkeel: &Path, lab: &Lab, files: &Files, daemon: &mut Process, stop: &AtomicBool) -> Result<()> {
    let deadline = Instant::now() + READY_LIMIT;
    while !stop.load(Ordering::Relaxed) {
        if let Some(status) = daemon.ended()? {
            bail!("the daemon ended ({status}); its log:\n{}", daemon.log());
        }
        let ask = lab.director().command(&evenkeel.to_string_lossy())?;
        let asked = ask.args(["status", "--json", "--socket"]).arg(&files.socket).limit(Duration::from_secs(2)).run();
        match asked {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                bail!("the daemon was not ready within {READY_LIMIT:?}: {error:#}; its log:\n{}", daemon.log());
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
    Ok(())
}

fn print_what_to_try(evenkeel: &Path, lab: &Lab, files: &Files, log: &Path) {
    let (client, director) = (lab.client(), lab.director());
    println!("\nThe daemon's log is {}.", log.display());
    println!("To try in another terminal, as root, while this runs:");
    println!("  {}", director.nsenter(&files.status(evenkeel)));
    println!("  {}", director.nsenter("bpftool map dump name real_servers"));
    println!("  {}", director.nsenter("bpftool map dump name virtual_servers"));
    println!("  {}", client.nsenter(&format!("curl http://{}/", address::VIP4)));
    println!("  {}", client.nsenter(&format!("curl 'http://[{}]/'", address::VIP6)));
    println!();
}

/// Asks and shows, until the time is over, a signal comes, or the daemon is gone.
fn traffic(lab: &Lab, demo: &Demo, daemon: &mut Process, stop: &AtomicBool) -> Result<Tally> {
    let deadline = demo.duration.map(|duration| Instant::now() + duration);
    let mut tally = Tally::new(lab.real_servers().iter().map(|real| real.name().to_owned()));
    let mut view = View::new();
    let enough = AtomicBool::new(false);
    let (sender, outcomes) = mpsc::channel();
    let ended = std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask(lab.client(), &enough, sender));
        let mut watch = || -> Result<()> {
            while !stop.load(Ordering::Relaxed) && deadline.is_none_or(|deadline| Instant::now() < deadline) {
                match outcomes.recv_timeout(PACE) {
                    Ok(outcome) => tally.count(outcome),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                view.show(&tally)?;
                if let Some(status) = daemon.ended()? {
                    bail!("the daemon ended ({status}); its log:\n{}", daemon.log());
                }
            }
            Ok(())
        };
        let watched = watch();
        enough.store(true, Ordering::Relaxed);
        watched.and(asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    // What was under way at the end counts too.
    outcomes.try_iter().for_each(|outcome| tally.count(outcome));
    ended.map(|()| tally)
}

/// One request after another, IPv4 and IPv6 in turn, from inside the client.
fn ask(client: &Namespace, enough: &AtomicBool, outcomes: mpsc::Sender<Result<String, String>>) -> Result<()> {
    let targets = address::vips().map(|vip| SocketAddr::new(vip, address::HTTP_PORT));
    client.run(move || {
        for target in targets.into_iter().cycle() {
            let next = Instant::now() + PACE;
            if enough.load(Ordering::Relaxed) || outcomes.send(request(target)).is_err() {
                return;
            }
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    })
}

/// Who answered, or why nobody did.
fn request(target: SocketAddr) -> Result<String, String> {
    let answer = lab::get(target, "/", REQUEST_LIMIT).map_err(|error| format!("{target}: {error}"))?;
    if answer.status == 200 { Ok(answer.real_server) } else { Err(format!("{target}: HTTP status {}", answer.status)) }
}

fn end(mut daemon: Process) -> Result<()> {
    let status = daemon.terminate(STOP_LIMIT)?;
    if !status.success() {
        bail!("the daemon ended with {status} after SIGTERM; its log:\n{}", daemon.log());
    }
    Ok(())
}
