//! Starting, stopping, dying, and several at once.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use evenkeel_tests::lab::{Arms, Forwarding, Lab};
use lb_userspace::instance::Instance;
use nix::sys::signal::Signal;

use crate::director::{Daemon, PATIENCE, Setup, evenkeel, footprint, lab, run, wait_until};

fn serves(lab: &Lab) -> Result<()> {
    for host in ["10.77.0.100", "[fd77::100]"] {
        let bodies = lab.client().fetch(&format!("http://{host}/"), 6)?;
        assert_eq!(bodies.iter().filter(|body| *body == "real1").count(), 2, "{bodies:?}");
    }
    Ok(())
}

#[test]
fn sigterm_and_sigint_leave_the_host_as_it_was() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::Two)? else { return Ok(()) };
    lab.director().command("ethtool")?.args(["-K", "eth0", "gro", "on"]).run()?;
    let before = footprint(&lab, &Setup::of(&lab))?;
    ensure!(before.contains("xdp: false, managed neighbours: 0, pins: false"), "{before}");
    for (signal, mode) in [(Signal::SIGTERM, "native"), (Signal::SIGINT, "generic")] {
        let mut daemon = Daemon::start(&lab, Setup { mode, ..Setup::of(&lab) })?;
        serves(&lab)?;
        let during = footprint(&lab, &daemon.setup)?;
        ensure!(during.contains("xdp: true, managed neighbours: 6, pins: true"), "{during}");
        daemon.process.signal(signal)?;
        ensure!(daemon.process.wait(PATIENCE)?.success(), "{}", daemon.process.log());
        assert_eq!(footprint(&lab, &daemon.setup)?, before, "after {signal}");
    }
    Ok(())
}

#[test]
fn sighup_reads_the_configuration_again_and_the_service_goes_on() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
    daemon.process.signal(Signal::SIGHUP)?;
    daemon.process.wait_for_log("configuration reloaded changes=0", PATIENCE)?;
    serves(&lab)?;
    daemon.stop()
}

#[test]
fn after_kill_9_packets_flow_and_the_next_daemon_starts_clean() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    lab.director().command("ethtool")?.args(["-K", "eth0", "gro", "on"]).run()?;
    let before = footprint(&lab, &Setup::of(&lab))?;
    let mut daemon = Daemon::start(&lab, Setup { mode: "generic", ..Setup::of(&lab) })?;
    daemon.process.kill9()?;
    serves(&lab)?;

    // A start that is refused leaves what still works alone.
    let left = footprint(&lab, &daemon.setup)?;
    let unfit = Setup { real_servers: vec![[10, 77, 1, 1].into(), lab.real(1).address6().into()], ..Setup::of(&lab) };
    let not_ethernet = Setup { interfaces: vec!["eth0".to_owned(), "lo".to_owned()], ..Setup::of(&lab) };
    for setup in [unfit, not_ethernet] {
        let file = setup.write(&lab)?;
        let refused = run(&lab, &["run", "--config", &file.to_string_lossy()])?;
        ensure!(!refused.status.success(), "it started");
        assert_eq!(footprint(&lab, &daemon.setup)?, left, "{}", refused.stderr);
        serves(&lab)?;
    }

    let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
    ensure!(daemon.process.log().contains("left by an earlier run"), "{}", daemon.process.log());
    serves(&lab)?;
    // Native mode has no need of what generic mode had switched off.
    let features = lab.director().command("ethtool")?.args(["-k", "eth0"]).run()?;
    ensure!(features.contains("generic-receive-offload: on"), "{features}");
    daemon.stop()?;
    assert_eq!(footprint(&lab, &daemon.setup)?, before);
    Ok(())
}

/// The program is replaced on its link: no SYN finds the interface without one, where the host would answer it with a reset.
#[test]
fn no_connection_is_refused_while_a_killed_daemon_is_succeeded() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::Two)? else { return Ok(()) };
    for mode in ["native", "generic"] {
        let mut daemon = Daemon::start(&lab, Setup { mode, ..Setup::of(&lab) })?;
        let stop = AtomicBool::new(false);
        let (made, refused) = std::thread::scope(|scope| -> Result<(u32, u32)> {
            let client = scope.spawn(|| lab.client().run(|| connect_until(&stop)));
            for _ in 0..3 {
                daemon.process.kill9()?;
                daemon = Daemon::start(&lab, Setup { mode, ..Setup::of(&lab) })?;
            }
            stop.store(true, Ordering::Relaxed);
            client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        ensure!(made > 100, "only {made} connections were made");
        assert_eq!(refused, 0, "{mode}: of {made} connections");
        daemon.stop()?;
    }
    Ok(())
}

/// Connects to the VIP again and again; how many connections were made, and how many refused.
fn connect_until(stop: &AtomicBool) -> (u32, u32) {
    let (mut made, mut refused) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        match TcpStream::connect_timeout(&([10, 77, 0, 100], 80).into(), Duration::from_millis(200)) {
            Ok(_) => made += 1,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => refused += 1,
            // A connection that was half open when the table was replaced.
            Err(_) => {}
        }
    }
    (made, refused)
}

#[test]
fn a_neighbour_that_an_operator_made_permanent_stays_so() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
    daemon.wait_for_next_hops("resolved")?;
    let mac = "02:00:00:00:77:02";
    lab.director().ip(&format!("neigh replace 10.77.1.12 lladdr {mac} dev eth0 nud permanent"))?;
    wait_until("the status", || Ok(daemon.status()?.to_string().contains(mac)))?;
    daemon.stop()?;
    let neighbours = lab.director().ip("neigh show dev eth0")?;
    ensure!(neighbours.lines().any(|line| line.contains(mac) && line.contains("PERMANENT")), "{neighbours}");
    // The others are the kernel's again, and still known.
    ensure!(!neighbours.contains("managed") && neighbours.contains("10.77.1.11 lladdr"), "{neighbours}");
    Ok(())
}

#[test]
fn cleanup_removes_what_a_killed_daemon_left_and_says_so() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    lab.director().command("ethtool")?.args(["-K", "eth0", "gro", "on"]).run()?;
    let setup = Setup { mode: "generic", ..Setup::of(&lab) };
    let before = footprint(&lab, &setup)?;
    let file = setup.write(&lab)?;
    let arguments = ["cleanup", "--config", &file.to_string_lossy()];
    let idle = run(&lab, &arguments)?;
    ensure!(idle.status.success() && String::from_utf8_lossy(&idle.stdout).contains("nothing to clean up"));

    let mut daemon = Daemon::start(&lab, setup)?;
    let refused = run(&lab, &arguments)?;
    let pid = format!("pid {}", daemon.process.pid());
    ensure!(refused.status.code() == Some(1) && refused.stderr.contains(&pid), "{}", refused.stderr);
    serves(&lab)?;

    daemon.process.kill9()?;
    let cleaned = run(&lab, &arguments)?;
    ensure!(cleaned.status.success(), "{}", cleaned.stderr);
    let told = String::from_utf8_lossy(&cleaned.stdout).into_owned();
    for words in ["XDP program detached", "test.sock removed", "rx-gro of eth0 on again", "10.77.1.11"] {
        ensure!(told.contains(words), "{words} is not in: {told}");
    }
    assert_eq!(footprint(&lab, &daemon.setup)?, before);
    Ok(())
}

#[test]
fn a_second_daemon_of_an_instance_is_refused_and_the_first_serves_on() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
    let file = daemon.setup.write(&lab)?;
    let second = run(&lab, &["run", "--config", &file.to_string_lossy()])?;
    ensure!(second.status.code() == Some(1), "{}", second.stderr);
    ensure!(second.stderr.contains("instance test is running already"), "{}", second.stderr);
    serves(&lab)?;
    ensure!(daemon.status()?["pid"] == daemon.process.pid());
    daemon.stop()
}

#[test]
fn another_runtime_directory_gives_no_claim_to_the_pins_of_a_running_daemon() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
    let other = Setup { runtime: lab.directory().join("elsewhere"), ..Setup::of(&lab) };
    let file = other.write(&lab)?;
    for command in ["run", "cleanup"] {
        let refused = run(&lab, &[command, "--config", &file.to_string_lossy()])?;
        ensure!(refused.status.code() == Some(1), "{}", refused.stderr);
        ensure!(refused.stderr.contains("belong to a running daemon"), "{}", refused.stderr);
        ensure!(!other.runtime.exists(), "{} is left", other.runtime.display());
    }
    serves(&lab)?;
    assert_eq!(daemon.status()?["interfaces"][0]["mode"], "native");
    daemon.stop()
}

#[test]
fn a_start_that_fails_late_leaves_the_program_of_a_killed_daemon_on_the_hook() -> Result<()> {
    let Some(lab) = lab(Forwarding::Direct, Arms::One)? else { return Ok(()) };
    lab.director().ip("route add 10.99.0.0/24 via 10.77.1.12")?;
    let mut daemon = Daemon::start(&lab, Setup::of(&lab))?;
    daemon.process.kill9()?;
    let left = footprint(&lab, &daemon.setup)?;
    // Found out only when the next hops are known: the program is loaded then, and neighbours are managed.
    let mut setup = Setup::of(&lab);
    setup.real_servers = vec![[10, 99, 0, 1].into(), lab.real(1).address6().into()];
    let file = setup.write(&lab)?;
    let refused = run(&lab, &["run", "--config", &file.to_string_lossy()])?;
    ensure!(refused.stderr.contains("behind router"), "{}", refused.stderr);
    assert_eq!(footprint(&lab, &daemon.setup)?, left);
    serves(&lab)
}

#[test]
fn cleanup_elsewhere_says_what_it_could_not_undo_and_forgets_nothing() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    lab.director().command("ethtool")?.args(["-K", "eth0", "gro", "on"]).run()?;
    let setup = Setup { mode: "generic", ..Setup::of(&lab) };
    let before = footprint(&lab, &setup)?;
    let file = setup.write(&lab)?;
    let arguments = ["cleanup", "--config", &file.to_string_lossy()];
    let mut daemon = Daemon::start(&lab, setup)?;
    daemon.process.kill9()?;
    let elsewhere = lab.client().command(&evenkeel().to_string_lossy())?.args(arguments).finish()?;
    ensure!(elsewhere.status.code() == Some(1), "{}", elsewhere.stderr);
    ensure!(
        elsewhere.stderr.contains("rx-gro of eth0 on again: made in another network namespace"),
        "{}",
        elsewhere.stderr
    );
    let here = run(&lab, &arguments)?;
    ensure!(here.status.success(), "{}", here.stderr);
    assert_eq!(footprint(&lab, &daemon.setup)?, before);
    Ok(())
}

#[test]
fn an_operators_runtime_directory_stays() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let setup = Setup::of(&lab);
    std::fs::create_dir(&setup.runtime)?;
    let mut daemon = Daemon::start(&lab, setup)?;
    daemon.stop()?;
    ensure!(daemon.setup.runtime.read_dir()?.next().is_none(), "something is left in it");
    Ok(())
}

#[test]
fn a_broken_journal_is_put_aside() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let setup = Setup::of(&lab);
    std::fs::create_dir(&setup.runtime)?;
    std::fs::write(setup.runtime.join("test.journal"), "{}\n")?;
    let mut daemon = Daemon::start(&lab, setup)?;
    ensure!(daemon.process.log().contains("the journal of changes is broken"), "{}", daemon.process.log());
    ensure!(daemon.setup.runtime.join("test.journal.broken").exists());
    daemon.stop()
}

#[test]
fn two_directors_share_a_host() -> Result<()> {
    let (Some(one), Some(two)) = (lab(Forwarding::Nat, Arms::One)?, lab(Forwarding::Direct, Arms::One)?) else {
        return Ok(());
    };
    let first = Setup { instance: "one".to_owned(), ..Setup::of(&one) };
    // The same folders for both: they differ in the instance's name alone.
    let second = Setup {
        instance: "two".to_owned(),
        pins: first.pins.clone(),
        runtime: first.runtime.clone(),
        ..Setup::of(&two)
    };
    let mut first = Daemon::start(&one, first)?;
    let mut second = Daemon::start(&two, second)?;
    serves(&one)?;
    serves(&two)?;
    assert_eq!(first.status()?["instance"], "one");
    assert_eq!(second.status()?["instance"], "two");
    first.stop()?;
    serves(&two)?;
    ensure!(second.setup.pin_folder().exists() && !first.setup.pin_folder().exists());
    second.stop()?;
    ensure!(!second.setup.pins.exists() && !second.setup.runtime.exists(), "the last one leaves a folder");
    Ok(())
}

#[test]
fn a_panic_puts_the_host_back() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    lab.director().command("ethtool")?.args(["-K", "eth0", "gro", "on"]).run()?;
    let setup = Setup::of(&lab);
    let before = footprint(&lab, &setup)?;
    let config = lb_userspace::config::load(&setup.write(&lab)?)?;
    let during = lab.director().run(|| -> Result<String> {
        let instance = Instance::acquire(&config)?;
        instance.disable_offload("eth0", "rx-gro")?;
        let during = footprint(&lab, &setup)?;
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _held = instance;
            panic!("this test's panic");
        }));
        ensure!(panicked.is_err());
        Ok(during)
    })??;
    ensure!(during != before, "nothing was changed");
    assert_eq!(footprint(&lab, &setup)?, before);
    Ok(())
}
