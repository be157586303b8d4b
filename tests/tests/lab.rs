//! The lab itself, without the daemon: packets go by the director's kernel.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use evenkeel_tests::lab::{self, Arms, Forwarding, Lab, SshLike, address, file_body};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn nat_with_one_arm_carries_traffic() -> Result<()> {
    carries_traffic(Forwarding::Nat, Arms::One)
}

#[test]
fn nat_with_two_arms_carries_traffic() -> Result<()> {
    carries_traffic(Forwarding::Nat, Arms::Two)
}

#[test]
fn direct_routing_carries_traffic() -> Result<()> {
    carries_traffic(Forwarding::Direct, Arms::One)
}

#[test]
fn tunnelling_carries_traffic() -> Result<()> {
    carries_traffic(Forwarding::Tunnel, Arms::One)
}

/// Every server answers the client through the director's kernel, on both families, and the director answers pings.
fn carries_traffic(forwarding: Forwarding, arms: Arms) -> Result<()> {
    if !lab::available() {
        return Ok(());
    }
    let lab = Lab::builder().real_servers(3).forwarding(forwarding).arms(arms).build()?;
    let client = lab.client();
    for vip in address::vips() {
        client.ping(vip, 2)?;
    }
    client.ping(IpAddr::V4(address::DIRECTOR4), 2)?;
    client.ping(IpAddr::V6(address::DIRECTOR6), 2)?;
    for real in lab.real_servers() {
        let (name, v4, v6) = (real.name(), real.address4(), real.address6());
        assert_eq!(client.fetch(&format!("http://{v4}/"), 3)?, [name; 3]);
        assert_eq!(client.fetch(&format!("http://[{v6}]/"), 3)?, [name; 3]);
        for target in [SocketAddr::from((v4, address::UDP_PORT)), SocketAddr::from((v6, address::UDP_PORT))] {
            assert_eq!(client.udp_echo(target, "hello", SECOND)?, format!("{name} hello"));
        }
        assert_eq!(real.http().context("runs")?.requests(), 6);
        assert_eq!(real.udp().context("runs")?.answers(), 2);
    }
    Ok(())
}

/// With DR and TUN nobody but the director answers for the VIP, and real servers answer from it.
#[test]
fn real_servers_hold_the_vip_in_silence() -> Result<()> {
    if !lab::available() {
        return Ok(());
    }
    let lab = Lab::builder().real_servers(2).forwarding(Forwarding::Direct).build()?;
    let director = mac(&lab.director().ip("-o link show dev eth0")?)?;
    for vip in address::vips() {
        for _ in 0..5 {
            lab.client().ip("neigh flush all")?;
            lab.client().ping(vip, 1)?;
            let neighbour = lab.client().ip(&format!("neigh show {vip} dev eth0"))?;
            ensure!(neighbour.contains(&director), "{vip} is not the director's {director}: {neighbour}");
        }
    }
    // The director out of the way: what is sent to a real server's MAC for the VIP is answered as the VIP.
    let real = mac(&lab.real(2).namespace().ip("-o link show dev eth0")?)?;
    for vip in address::vips() {
        lab.client().ip(&format!("neigh replace {vip} lladdr {real} dev eth0 nud permanent"))?;
        let host = if vip.is_ipv6() { format!("[{vip}]") } else { vip.to_string() };
        assert_eq!(lab.client().fetch(&format!("http://{host}/"), 1)?, ["real2"]);
        assert_eq!(lab.client().udp_echo(SocketAddr::from((vip, address::UDP_PORT)), "hi", SECOND)?, "real2 hi");
    }
    Ok(())
}

#[test]
fn files_arrive_as_they_were_sent() -> Result<()> {
    if !lab::available() {
        return Ok(());
    }
    let lab = Lab::builder().real_servers(2).build()?;
    let length = 3_000_000;
    for real in lab.real_servers() {
        let url = format!("http://{}/file/{length}", real.address4());
        for download in lab.client().downloads(&url, 3)? {
            assert_eq!((download.length, download.digest), (length, file_body(length).digest()));
        }
        let digest = lab.client().upload(&format!("http://[{}]/digest", real.address6()), length)?;
        assert_eq!(digest, file_body(length).digest());
    }
    let answer = lab.client().run(|| lab::get(SocketAddr::from((lab.real(1).address6(), 80)), "/", SECOND))??;
    assert_eq!((answer.status, answer.real_server.as_str(), answer.body.as_str()), (200, "real1", "real1\n"));
    Ok(())
}

#[test]
fn a_stopped_server_refuses_and_a_started_one_answers() -> Result<()> {
    if !lab::available() {
        return Ok(());
    }
    let mut lab = Lab::builder().real_servers(1).build()?;
    let url = format!("http://{}/", lab.real(1).address4());
    for real in lab.real_servers_mut() {
        real.stop_http();
        real.stop_udp();
    }
    let answers = lab.client().try_fetch(&url, 2)?;
    assert_eq!(answers.len(), 2);
    for answer in answers {
        let message = answer.expect_err("nobody listens");
        ensure!(message.starts_with("curl 7: "), "not refused: {message}");
    }
    let target = SocketAddr::from((lab.real(1).address4(), address::UDP_PORT));
    lab.client().udp_echo(target, "x", SECOND).expect_err("nobody listens");
    for real in lab.real_servers_mut() {
        real.start_http()?;
        real.start_udp()?;
    }
    assert_eq!(lab.client().fetch(&url, 2)?, ["real1", "real1"]);
    assert_eq!(lab.client().udp_echo(target, "x", SECOND)?, "real1 x");
    Ok(())
}

#[test]
fn lines_are_echoed_by_the_directors_own_service() -> Result<()> {
    if !lab::available() {
        return Ok(());
    }
    let lab = Lab::builder().build()?;
    let _server = SshLike::start(lab.director(), "[::]:22".parse()?)?;
    for target in [SocketAddr::from((address::DIRECTOR4, 22)), SocketAddr::from((address::DIRECTOR6, 22))] {
        let heard = lab.client().talk(target, &["one", "two"], SECOND)?;
        assert_eq!(heard, [SshLike::BANNER, "one", "two"]);
    }
    Ok(())
}

/// Processes run in the namespace they were started in, and all three ways to end one work.
#[test]
fn processes_are_logged_and_end() -> Result<()> {
    if !lab::available() {
        return Ok(());
    }
    let lab = Lab::builder().build()?;
    let mut listing = Command::new("sh");
    listing.args(["-c", "ip -o -4 addr show dev eth0; echo ready >&2; exec sleep 600"]);
    let mut first = lab.start(lab.director(), "listing", listing)?;
    first.wait_for_log("ready", 5 * SECOND)?;
    ensure!(first.log().contains("10.77.0.100/32"), "not in the director: {}", first.log());
    ensure!(!first.terminate(5 * SECOND)?.success(), "sleep ends by the signal");

    let mut stubborn = Command::new("sh");
    stubborn.args(["-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"]);
    let mut second = lab.start(lab.director(), "stubborn", stubborn)?;
    second.wait_for_log("ready", 5 * SECOND)?;
    let error = second.terminate(SECOND / 5).expect_err("it ignores SIGTERM").to_string();
    ensure!(error.starts_with("stubborn has not ended within 200ms; its log:\nready"), "{error}");
    ensure!(second.ended()?.is_some(), "killed after the limit");

    let mut short = lab.start(lab.director(), "short", Command::new("true"))?;
    let error = short.wait_for_log("ready", 5 * SECOND).expect_err("it says nothing").to_string();
    ensure!(error.starts_with("short ended (exit status: 0) before it said \"ready\""), "{error}");
    lab.start(lab.director(), "none", Command::new("no-such-program")).expect_err("there is no such program");
    Ok(())
}

#[test]
fn two_labs_at_once_do_not_meet() -> Result<()> {
    if !lab::available() {
        return Ok(());
    }
    let first = Lab::builder().build()?;
    let second = Lab::builder().real_servers(2).build()?;
    assert_ne!(first.name(), second.name());
    let url = "http://10.77.1.12/";
    assert_eq!(second.client().fetch(url, 1)?, ["real2"]);
    first.client().fetch(url, 1).expect_err("the first lab has one real server");
    std::fs::create_dir(first.bpffs().join("pins"))?;
    ensure!(!second.bpffs().join("pins").exists(), "each lab has a bpf filesystem of its own");
    Ok(())
}

#[test]
fn nothing_stays_behind_when_a_lab_is_dropped_or_a_test_panics() -> Result<()> {
    if !lab::available() {
        return Ok(());
    }
    let (name, folder, pid) = {
        let lab = Lab::builder().real_servers(2).arms(Arms::Two).build()?;
        let process = lab.start(lab.director(), "sleep", sleep())?;
        ensure!(traces(lab.name(), lab.directory(), process.pid()).len() == 5 + 3, "all of it is there first");
        (lab.name().to_owned(), lab.directory().to_owned(), process.pid())
    };
    assert_eq!(traces(&name, &folder, pid), [""; 0]);

    let (sender, receiver) = std::sync::mpsc::channel();
    let unwound = std::thread::spawn(move || {
        let lab = Lab::builder().real_servers(1).build().expect("a lab");
        let process = lab.start(lab.director(), "sleep", sleep()).expect("a process");
        sender.send((lab.name().to_owned(), lab.directory().to_owned(), process.pid())).expect("a listener");
        panic!("this panic is part of the test");
    });
    let (name, folder, pid) = receiver.recv()?;
    unwound.join().expect_err("it panics");
    assert_eq!(traces(&name, &folder, pid), [""; 0]);
    Ok(())
}

/// What a killed process leaves is removed by the next lab; its own processes die with it.
#[test]
fn the_next_lab_removes_what_a_killed_one_left() -> Result<()> {
    if !lab::available() {
        return Ok(());
    }
    let mut holder = Command::new(std::env::current_exe()?);
    holder.args(["--exact", "holds_a_lab_until_it_is_killed", "--nocapture"]).env("EVENKEEL_TEST_HOLD", "1");
    let mut holder = Held(holder.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?);
    let mut lines = BufReader::new(holder.0.stdout.take().context("a pipe")?).lines();
    let held = lines.find_map(|line| line.ok()?.split_once("held ").map(|(_, rest)| rest.to_owned()));
    let held = held.context("the holder says what it holds")?;
    let [name, folder, pid] = held.split(' ').collect::<Vec<_>>()[..] else { anyhow::bail!("not three: {held}") };
    let (folder, pid) = (Path::new(folder), pid.parse()?);
    assert_eq!(traces(name, folder, pid).len(), 4 + 3);

    holder.0.kill()?;
    holder.0.wait()?;
    let deadline = Instant::now() + 5 * SECOND;
    while running(pid) && Instant::now() < deadline {
        std::thread::sleep(SECOND / 100);
    }
    assert_eq!(traces(name, folder, pid).len(), 4 + 2, "its process died with it, the rest stays");
    let _next = Lab::builder().build()?;
    assert_eq!(traces(name, folder, pid), [""; 0]);
    Ok(())
}

/// The other half of the test above; alone it does nothing.
#[test]
fn holds_a_lab_until_it_is_killed() -> Result<()> {
    if std::env::var_os("EVENKEEL_TEST_HOLD").is_none() {
        return Ok(());
    }
    let lab = Lab::builder().build()?;
    let process = lab.start(lab.director(), "sleep", sleep())?;
    println!("held {} {} {}", lab.name(), lab.directory().display(), process.pid());
    // Until it is killed, or the test that started it is gone and has closed the pipe's other end.
    std::thread::sleep(60 * SECOND);
    Ok(())
}

/// A child that doesn't outlive the test.
struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn sleep() -> Command {
    let mut command = Command::new("sleep");
    command.arg("600");
    command
}

/// What there is of a lab: its namespaces, its mount, its folder, and one process.
fn traces(name: &str, folder: &Path, pid: u32) -> Vec<String> {
    let prefix = format!("{name}-");
    let mut found: Vec<String> = std::fs::read_dir("/run/netns")
        .map(|entries| entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    found.retain(|entry| entry.starts_with(&prefix));
    let mut mounts = String::new();
    drop(std::fs::File::open("/proc/self/mountinfo").and_then(|mut file| file.read_to_string(&mut mounts)));
    let bpf = |line: &&str| line.contains(" - bpf ") && line.contains(&folder.display().to_string());
    found.extend(mounts.lines().filter(bpf).map(str::to_owned));
    found.extend(folder.exists().then(|| folder.display().to_string()));
    found.extend(running(pid).then(|| format!("process {pid}")));
    found
}

fn running(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.is_empty() && !status.contains("State:\tZ")
}

/// The MAC address in a line of `ip -o link`.
fn mac(line: &str) -> Result<String> {
    let rest = line.split_once("link/ether ").with_context(|| format!("no MAC address in {line}"))?.1;
    Ok(rest.split(' ').next().unwrap_or_default().to_owned())
}
