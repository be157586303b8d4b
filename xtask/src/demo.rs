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
use evenkeel_tests::lab::{self, Cmd, Lab, Namespace, Process, address};

use crate::demo_config::{self, DemoConfig, Method};
use crate::demo_view::{Tally, View, counted};
use crate::run::{Demo, Misuse};
use crate::shell;

/// How long the daemon may take until it answers `evenkeel status`.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// Twenty requests a second.
const PACE: Duration = Duration::from_millis(50);
/// A request without an answer for this long is an error.
const REQUEST_LIMIT: Duration = Duration::from_secs(1);
/// How long the daemon may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// How much of the daemon's log is shown when requests were not answered.
const LOG_LINES: usize = 20;
/// What the echo shall echo.
const UDP_WORD: &str = "hello";
/// Below the table.
const TURNS: &str = "Every virtual server (HTTP and the UDP echo, each over IPv4 and IPv6) schedules for itself, so with rr\n\
                     the counts of the real servers may differ by a few. There is one client only: sh, dh and mh\n\
                     give all of a virtual server's connections to one real server.";

/// Runs until the time is over or a signal comes; an error unless every request was answered.
pub(crate) fn run(evenkeel: &Path, demo: &Demo) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    ctrlc::set_handler(move || stopped.store(true, Ordering::Relaxed)).context("can't catch signals")?;

    check(evenkeel, demo)?;
    let lab = Lab::builder().quiet().real_servers(demo.real_servers).forwarding(demo.forwarding.lab()).build()?;
    println!(
        "lab {}: client, director and {}, forwarding {}",
        lab.name(),
        counted(demo.real_servers.into(), "real server"),
        demo.forwarding.name()
    );
    let files = Files::write(&lab, demo)?;
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
    if demo.real_servers > 1 {
        println!("\n{TURNS}");
    }
    let log = end(daemon)?;
    drop(decapsulators);
    drop(lab);
    if !tally.is_good() {
        let lines: Vec<&str> = log.lines().collect();
        let last = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default();
        eprintln!("\nThe last lines of the daemon's log:\n{}", last.join("\n"));
        bail!("not answered: {} of {}", tally.errors(), counted(tally.requests(), "request"));
    }
    println!("The lab is gone, and the daemon's log with it.");
    Ok(())
}

/// Has the daemon check the configuration before anything is made; what it refuses is what the flags ask for.
fn check(evenkeel: &Path, demo: &Demo) -> Result<()> {
    // It only reads: the folders need not be there.
    let nowhere = Path::new("/nonexistent");
    let DemoConfig { text, .. } = demo_config::adjust(&template()?, demo, nowhere, nowhere)?;
    let checked = Cmd::new(evenkeel).args(["check", "/dev/stdin"]).stdin(text).finish()?;
    if checked.status.success() {
        return Ok(());
    }
    let first = checked.stderr.lines().find_map(|line| line.split_once(": error: ")).map(|(_, message)| message);
    let message = first.unwrap_or(checked.stderr.trim());
    match message.strip_prefix("virtual_server.scheduler ") {
        Some(rest) => Err(Misuse(format!("--scheduler {rest}")).into()),
        None => bail!("configs/demo.toml, with what the flags ask for: {message}"),
    }
}

fn template() -> Result<String> {
    let source = shell::root().join("configs/demo.toml");
    fs::read_to_string(&source).with_context(|| format!("can't read {}", source.display()))
}

/// What is written into the lab's folder, or will be by the daemon.
struct Files {
    config: PathBuf,
    socket: PathBuf,
    /// The folder with the instance's pinned maps.
    pins: PathBuf,
}

impl Files {
    fn write(lab: &Lab, demo: &Demo) -> Result<Self> {
        let runtime = lab.directory().join("run");
        fs::create_dir(&runtime).with_context(|| format!("can't make {}", runtime.display()))?;
        let pins = lab.bpffs().join("evenkeel");
        let DemoConfig { text, instance } = demo_config::adjust(&template()?, demo, &runtime, &pins)?;
        let pins = pins.join(&instance);
        let config = lab.directory().join("demo.toml");
        fs::write(&config, text).with_context(|| format!("can't write {}", config.display()))?;
        Ok(Self { config, socket: runtime.join(format!("{instance}.sock")), pins })
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
    for map in ["virtual_servers", "real_servers"] {
        println!("  bpftool map dump pinned {}", files.pins.join(map).display());
    }
    println!("  {}", client.nsenter(&format!("curl -s http://{}/", address::VIP4)));
    println!("  {}", client.nsenter(&format!("curl -s 'http://[{}]/'", address::VIP6)));
    // head reads the whole datagram at once; what reads it byte by byte, like bash itself, loses all but the first.
    let echo = format!(
        "bash -c 'exec 3<>/dev/udp/{}/{}; echo hello >&3; timeout 1 head -n 1 <&3'",
        address::VIP4,
        address::UDP_PORT
    );
    println!("  {}", client.nsenter(&echo));
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

/// One request after another, IPv4 and IPv6 in turn, every fifth by UDP, from inside the client.
fn ask(client: &Namespace, enough: &AtomicBool, outcomes: mpsc::Sender<Result<String, String>>) -> Result<()> {
    let round = address::vips().into_iter().flat_map(|udp| {
        let http = address::vips().map(|vip| Request::Http(SocketAddr::new(vip, address::HTTP_PORT)));
        let udp = Request::Udp(SocketAddr::new(udp, address::UDP_PORT));
        http.into_iter().chain(http).chain([udp])
    });
    let round: Vec<Request> = round.collect();
    client.run(move || {
        for request in round.iter().cycle() {
            let next = Instant::now() + PACE;
            if enough.load(Ordering::Relaxed) || outcomes.send(request.outcome()).is_err() {
                return;
            }
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    })
}

/// What the client asks for, and where.
#[derive(Clone, Copy, Debug)]
enum Request {
    Http(SocketAddr),
    Udp(SocketAddr),
}

impl Request {
    /// Who answered, or why nobody did.
    fn outcome(self) -> Result<String, String> {
        match self {
            Self::Http(target) => {
                let answer = lab::get(target, "/", REQUEST_LIMIT).map_err(|error| format!("{target}: {error}"))?;
                if answer.status == 200 {
                    Ok(answer.real_server)
                } else {
                    Err(format!("{target}: HTTP status {}", answer.status))
                }
            }
            Self::Udp(target) => {
                let answer = lab::udp_ask(target, UDP_WORD, REQUEST_LIMIT);
                let answer = answer.map_err(|error| format!("UDP {target}: {error}"))?;
                // Its name, a space, and what it got.
                match answer.strip_suffix(UDP_WORD).and_then(|name| name.strip_suffix(' ')) {
                    Some(name) => Ok(name.to_owned()),
                    None => Err(format!("UDP {target}: answered {answer:?}")),
                }
            }
        }
    }
}

/// Ends the daemon; returns its log.
fn end(mut daemon: Process) -> Result<String> {
    let status = daemon.terminate(STOP_LIMIT)?;
    if !status.success() {
        bail!("the daemon ended with {status} after SIGTERM; its log:\n{}", daemon.log());
    }
    Ok(daemon.log())
}
