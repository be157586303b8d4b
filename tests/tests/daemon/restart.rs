//! `evenkeel restart`, `evenkeel stop`, and what the service manager asks and hears of them.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use evenkeel_tests::lab::{Arms, Crowd, Finished, Forwarding, Lab};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::director::{PATIENCE, Setup, evenkeel, footprint, lab, lab_of, run, wait_until};
use crate::operated::{ECHO, ECHO4, Operated, Server, each, echoes, newcomers, runs, tell, while_talking};

/// A copy of the daemon's executable that a test may exchange.
fn executable(lab: &Lab) -> Result<PathBuf> {
    let path = lab.directory().join("evenkeel");
    fs::copy(evenkeel(), &path)?;
    Ok(path)
}

/// Puts a shell script in the place of an executable, as an upgrade would.
fn exchange(path: &Path, script: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, format!("#!/bin/sh\n{script}\n"))?;
    fs::set_permissions(&new, Permissions::from_mode(0o755))?;
    Ok(fs::rename(new, path)?)
}

fn two(lab: &Lab) -> Result<([Server; 1], Vec<evenkeel_tests::lab::TcpEcho>)> {
    Ok(([Server::tcp(ECHO4).reals([1, 2])], echoes(lab, ECHO)?))
}

#[test]
fn a_process_that_cannot_take_over_changes_nothing_and_says_why() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let (servers, _echoes) = two(&lab)?;
    let path = executable(&lab)?;
    let mut operated = Operated::start_by(&lab, "", &servers, Command::new(&path))?;
    let mut crowd = Crowd::connect(lab.client(), ECHO4, 40)?;
    let before = footprint(&lab, &operated.daemon.setup)?;
    let pid = operated.daemon.process.pid();
    while_talking(&mut crowd, |rounds| {
        let goes_on = "not restarted, the daemon goes on as before";
        operated.write(&[servers[0].clone().key("schedule = \"rr\"")])?;
        operated.refuses(&["restart"], &[goes_on, "operated.toml:", "schedule"])?;
        operated.write(&[servers[0].clone().real_at([10, 77, 1, 1].into(), "")])?;
        operated.refuses(&["restart"], &[goes_on, "10.77.1.1"])?;
        operated.write(&servers)?;
        exchange(&path, "exit 3")?;
        operated.refuses(&["restart"], &[goes_on, "ended without a word"])?;
        fs::remove_file(&path)?;
        operated.refuses(&["restart"], &["cannot start", "No such file"])?;
        rounds.pass()
    })?;
    assert_eq!(operated.daemon.status()?["pid"], pid);
    assert_eq!(footprint(&lab, &operated.daemon.setup)?, before);
    assert_eq!(operated.reload(&[servers[0].clone().reals([3])])?, "reloaded: 1 virtual server has changed\n");
    assert_eq!(crowd.ended(), BTreeMap::new());
    // And a second try succeeds.
    fs::copy(evenkeel(), &path)?;
    operated.restart()?;
    crowd.talk()?;
    assert_eq!(crowd.ended(), BTreeMap::new());
    operated.stop()
}

#[test]
fn one_restart_at_a_time_with_what_is_on_disk_and_drains_go_on() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let (servers, _echoes) = two(&lab)?;
    let path = executable(&lab)?;
    let mut operated = Operated::start_by(&lab, "", &servers, Command::new(&path))?;
    let mut crowd = Crowd::connect(lab.client(), ECHO4, 40)?;
    let (go, real) = (lab.directory().join("go"), evenkeel());
    exchange(&path, &format!("until [ -e {} ]; do sleep 0.02; done\nexec {} \"$@\"", go.display(), real.display()))?;
    let told = while_talking_and(&mut crowd, || {
        std::thread::scope(|scope| -> Result<String> {
            let first = scope.spawn(|| operated.does(&["restart"]));
            wait_until("a successor", || {
                Ok(operated.daemon.process.log().contains("prepares to take this one's place"))
            })?;
            operated.refuses(&["restart"], &["a restart is under way already"])?;
            operated.refuses(&["reload"], &["a restart is under way"])?;
            operated.does(&["drain", "10.77.1.11", "--for", "300s"])?;
            operated.does(&["drain", "10.77.1.12"])?;
            operated.does(&["undrain", "10.77.1.12"])?;
            fs::write(&go, "")?;
            first.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    operated.succeed(&told)?;
    let drained = operated.real(&servers[0], 1)?;
    ensure!(drained["drained"] == true && drained["drained_for_seconds"].as_u64() > Some(200), "{drained:#}");
    assert_eq!(newcomers(&lab, ECHO4, 4)?, each(&[(2, 4)]));
    crowd.talk()?;
    assert_eq!(crowd.ended(), BTreeMap::new());
    operated.stop()
}

fn while_talking_and<T>(crowd: &mut Crowd, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut made = None;
    while_talking(crowd, |rounds| {
        made = Some(work()?);
        rounds.pass()
    })?;
    made.context("nothing was done")
}

/// What a restart that is disturbed has come to.
fn disturbed(operated: &Operated<'_>, delay: u64, disturb: impl FnOnce(Pid) -> Result<()>) -> Result<Finished> {
    std::thread::scope(|scope| {
        let mark = operated.daemon.process.log().len();
        let restart = scope.spawn(|| operated.finish(&["restart"]));
        let heir = || -> Option<Pid> {
            let log = operated.daemon.process.log();
            let line =
                log.get(mark..)?.lines().find(|line| line.contains("prepares to take this one's place"))?.to_owned();
            let digits: String = line.rsplit("pid=").next()?.chars().take_while(char::is_ascii_digit).collect();
            Some(Pid::from_raw(digits.parse().ok()?))
        };
        wait_until("a successor", || Ok(heir().is_some()))?;
        std::thread::sleep(Duration::from_millis(delay));
        disturb(heir().context("no successor")?)?;
        restart.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Whenever the new process is killed, one daemon is there or none, and nobody has lost anything.
#[test]
fn a_process_that_is_killed_while_it_takes_over_costs_no_connection() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::Two)? else { return Ok(()) };
    let (servers, _echoes) = two(&lab)?;
    let mut operated = Operated::start(&lab, &servers)?;
    let mut crowd = Crowd::connect(lab.client(), ECHO4, 40)?;
    let mut went_on = 0;
    while_talking(&mut crowd, |rounds| {
        for delay in (0..16).map(|turn| turn * 40) {
            let end = disturbed(&operated, delay, |heir| Ok(kill(heir, Signal::SIGKILL)?))?;
            if end.status.success() {
                // Too late: it served already, and nobody does now.
                operated.daemon.process.wait(PATIENCE)?;
                operated.start_again()?;
            } else {
                ensure!(end.stderr.contains("the daemon goes on as before"), "{}", end.stderr);
                went_on += 1;
            }
            rounds.pass()?;
            let status = operated.daemon.status()?;
            assert_eq!(status["pid"], operated.daemon.process.pid());
            for interface in status["interfaces"].as_array().context("none")? {
                assert_eq!(interface["mode"], "native");
            }
            assert_eq!(newcomers(&lab, ECHO4, 2)?, each(&[(1, 1), (2, 1)]), "after {delay} ms");
        }
        Ok(())
    })?;
    ensure!(went_on > 0, "it was always too late");
    assert_eq!(crowd.ended(), BTreeMap::new());
    // What it has left half done is no hindrance.
    operated.restart()?;
    crowd.talk()?;
    assert_eq!(crowd.ended(), BTreeMap::new());
    operated.stop()
}

/// Whenever SIGTERM comes to the old process, both end, and the host is as before.
#[test]
fn a_signal_to_stop_ends_old_and_new() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let (servers, _echoes) = two(&lab)?;
    let before = footprint(&lab, &Setup::of(&lab))?;
    for delay in [0, 100, 200, 400] {
        let mut operated = Operated::start(&lab, &servers)?;
        let old = i32::try_from(operated.daemon.process.pid())?;
        let mut heirs = Vec::new();
        disturbed(&operated, delay, |heir| {
            heirs.push(heir);
            // The old one may have gone.
            tell(Pid::from_raw(old), Signal::SIGTERM);
            Ok(())
        })?;
        let log = operated.daemon.process.log();
        ensure!(operated.daemon.process.wait(PATIENCE)?.success(), "{log}");
        let told = operated.daemon.process.log().contains("stopping signal=\"SIGTERM\"");
        if !told {
            // It had left when the signal came.
            for heir in &heirs {
                tell(*heir, Signal::SIGTERM);
            }
        }
        wait_until("the end of both", || Ok(heirs.iter().all(|heir| !runs(*heir))))?;
        assert_eq!(
            footprint(&lab, &operated.daemon.setup)?,
            before,
            "after {delay} ms: {}",
            operated.daemon.process.log()
        );
    }
    Ok(())
}

#[test]
fn a_restart_that_needs_other_tables_says_how_many_connections_are_lost() -> Result<()> {
    let Some(lab) = lab(Forwarding::Direct, Arms::One)? else { return Ok(()) };
    let (servers, _echoes) = two(&lab)?;
    let mut operated = Operated::start(&lab, &servers)?;
    let mut crowd = Crowd::connect(lab.client(), ECHO4, 30)?;
    crowd.talk()?;
    operated.connections_max = 131_072;
    operated.write(&servers)?;
    let end = operated.finish(&["restart"])?;
    let told = String::from_utf8_lossy(&end.stdout).into_owned();
    ensure!(end.status.success() && told.contains("with new tables"), "{told}{}", end.stderr);
    for words in ["xdp.connections_max was 65536, is 131072", "30 connections are lost"] {
        ensure!(end.stderr.contains(words), "{words:?} is not in {}", end.stderr);
    }
    operated.succeed(&told)?;
    assert_eq!(newcomers(&lab, ECHO4, 4)?, each(&[(1, 2), (2, 2)]));
    // The next one has nothing to give up.
    ensure!(operated.restart()?.contains("connections and counters go on"));
    operated.stop()
}

#[test]
fn a_restart_takes_what_a_symbolic_link_leads_to_now() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let (servers, _echoes) = two(&lab)?;
    let (upgraded, link) = (executable(&lab)?, lab.directory().join("bin/evenkeel"));
    let lead_to = |target: &Path| -> Result<()> {
        let new = link.with_extension("new");
        std::os::unix::fs::symlink(target, &new)?;
        Ok(fs::rename(new, &link)?)
    };
    fs::create_dir(lab.directory().join("bin"))?;
    lead_to(&evenkeel())?;
    let mut operated = Operated::start_by(&lab, "", &servers, Command::new(&link))?;
    lead_to(&upgraded)?;
    for _ in 0..2 {
        let told = operated.restart()?;
        let words = format!("version {} of {}, connections", env!("CARGO_PKG_VERSION"), upgraded.display());
        ensure!(told.contains(&words), "{words:?} is not in {told}");
    }
    operated.stop()
}

#[test]
fn a_slow_start_goes_on_over_a_restart_and_begins_with_one() -> Result<()> {
    let Some(lab) = lab_of(4, Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let server = Server::tcp(ECHO4).key("scheduler = \"wrr\"\nslow_start = \"1h\"");
    let with = |numbers: &[u8]| [numbers.iter().fold(server.clone(), |all, one| all.real(*one, "weight = 100"))];
    let mut operated = Operated::start(&lab, &with(&[1, 2]))?;
    let rising = |operated: &Operated<'_>, numbers: &[u8]| -> Result<Vec<u8>> {
        let mut rising = Vec::new();
        for number in numbers {
            let real = operated.real(&server, *number)?;
            let is_rising = real["rising"] == true;
            assert_eq!(is_rising, real["weight"].as_u64().context("no weight")? < 100, "{real:#}");
            rising.extend(is_rising.then_some(*number));
        }
        Ok(rising)
    };
    operated.reload(&with(&[1, 2, 3]))?;
    assert_eq!(rising(&operated, &[1, 2, 3])?, [3]);
    operated.write(&with(&[1, 2, 3, 4]))?;
    operated.restart()?;
    assert_eq!(rising(&operated, &[1, 2, 3, 4])?, [3, 4]);
    // What a killed one had in mind nobody knows, but what is new is seen in the tables.
    operated.reload(&with(&[1, 2, 3]))?;
    operated.write(&with(&[1, 2, 3, 4]))?;
    operated.kill_and_start()?;
    assert_eq!(rising(&operated, &[1, 2, 3, 4])?, [4]);
    operated.stop()
}

/// What one that has failed leaves broken hinders only what needs it, until it is whole again.
#[test]
fn a_daemon_that_goes_on_does_so_with_all_that_it_can() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let (servers, _echoes) = two(&lab)?;
    let before = footprint(&lab, &Setup::of(&lab))?;
    let mut operated = Operated::start(&lab, &servers)?;
    let mut crowd = Crowd::connect(lab.client(), ECHO4, 40)?;
    let journal = operated.daemon.setup.socket().with_extension("journal");
    let whole = fs::read_to_string(&journal)?;
    fs::write(&journal, format!("{whole}no change\n"))?;
    while_talking(&mut crowd, |rounds| {
        operated.refuses(&["restart"], &["not restarted, the daemon goes on as before", "test.journal"])?;
        rounds.pass()?;
        operated.daemon.process.wait_for_log("part=\"journal of changes\"", PATIENCE)?;
        let status = operated.daemon.status()?;
        assert_eq!(
            (&status["pid"], &status["interfaces"][0]["mode"]),
            (&operated.daemon.process.pid().into(), &"native".into())
        );
        assert_eq!(operated.reload(&[servers[0].clone().reals([3])])?, "reloaded: 1 virtual server has changed\n");
        let mended: Vec<String> = fs::read_to_string(&journal)?.lines().map(|line| format!("{line}\n")).collect();
        fs::write(&journal, mended.into_iter().filter(|line| line != "no change\n").collect::<String>())?;
        operated.daemon.process.wait_for_log("this daemon goes on", 3 * PATIENCE)?;
        operated.restart()?;
        rounds.pass()
    })?;
    assert_eq!(crowd.ended(), BTreeMap::new());
    operated.stop()?;
    assert_eq!(footprint(&lab, &operated.daemon.setup)?, before);
    Ok(())
}

/// A directory with a `systemctl` that prints these jobs.
fn systemctl(lab: &Lab, jobs: &str) -> Result<String> {
    let directory = lab.directory().join("bin");
    fs::create_dir_all(&directory)?;
    exchange(&directory.join("systemctl"), &format!("[ \"$1\" = list-jobs ] && printf '{jobs}'"))?;
    Ok(format!("{}:{}", directory.display(), std::env::var("PATH")?))
}

#[test]
fn systemd_restarts_without_loss_and_stops_for_good() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let (servers, _echoes) = two(&lab)?;
    let before = footprint(&lab, &Setup::of(&lab))?;
    let mut operated = Operated::start(&lab, &servers)?;
    let mut crowd = Crowd::connect(lab.client(), ECHO4, 40)?;
    let stop = |pid: u32, jobs: &str| -> Result<String> {
        let mut command = lab.director().command("env")?.args([format!("PATH={}", systemctl(&lab, jobs)?)]);
        command =
            command.arg(evenkeel()).args(["stop", "--unit", "evenkeel.service"]).args(["--pid", &pid.to_string()]);
        command.limit(PATIENCE).run()
    };
    while_talking(&mut crowd, |rounds| {
        // A file that is broken by then is no reason to withdraw.
        operated.write(&[servers[0].clone().key("schedule = \"rr\"")])?;
        let told = stop(
            operated.daemon.process.pid(),
            "17 evenkeel.service restart running\\n18 other.service stop waiting\\n",
        )?;
        assert_eq!(told, "stopped; the program forwards on, for the next daemon\n");
        ensure!(operated.daemon.process.wait(PATIENCE)?.success(), "{}", operated.daemon.process.log());
        rounds.pass()?;
        operated.write(&servers)?;
        operated.start_again()?;
        rounds.pass()
    })?;
    ensure!(operated.daemon.status()?["adopted"] == true);
    assert_eq!(crowd.ended(), BTreeMap::new());
    crate::adoption::is_exact(&operated, 40)?;
    let pid = operated.daemon.process.pid();
    assert_eq!(stop(pid, "18 other.service restart running\\n19 evenkeel.service stop running\\n")?, "stopped\n");
    ensure!(operated.daemon.process.wait(PATIENCE)?.success(), "{}", operated.daemon.process.log());
    assert_eq!(footprint(&lab, &operated.daemon.setup)?, before);
    Ok(())
}

#[test]
fn the_service_manager_hears_who_serves() -> Result<()> {
    let Some(lab) = lab(Forwarding::Nat, Arms::One)? else { return Ok(()) };
    let (servers, _echoes) = two(&lab)?;
    let path = lab.directory().join("notify");
    let manager = UnixDatagram::bind(&path)?;
    manager.set_read_timeout(Some(PATIENCE))?;
    let hears = || -> Result<String> {
        let mut buffer = [0; 256];
        let length = manager.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned())
    };
    let mut program = Command::new(evenkeel());
    program.env("NOTIFY_SOCKET", &path);
    let mut operated = Operated::start_by(&lab, "", &servers, program)?;
    assert_eq!(hears()?, "READY=1");
    let told = operated.restart()?;
    let pid = told.split("pid ").nth(1).and_then(|rest| rest.split(',').next()).context("no pid")?.to_owned();
    let mut heard = [hears()?, hears()?];
    heard.sort();
    assert_eq!(heard, [format!("MAINPID={pid}"), "READY=1".to_owned()]);
    operated.stop()?;
    assert_eq!(hears()?, "STOPPING=1");
    Ok(())
}

#[test]
fn a_stop_that_keeps_is_for_the_next_start_or_a_cleanup() -> Result<()> {
    let Some(lab) = lab(Forwarding::Direct, Arms::One)? else { return Ok(()) };
    let (servers, _echoes) = two(&lab)?;
    let before = footprint(&lab, &Setup::of(&lab))?;
    let mut operated = Operated::start(&lab, &servers)?;
    let mut crowd = Crowd::connect(lab.client(), ECHO4, 10)?;
    for _ in 0..2 {
        operated.does(&["stop", "--keep"])?;
        ensure!(operated.daemon.process.wait(PATIENCE)?.success());
        crowd.talk()?;
        operated.refuses(&["status"], &["it has died, and its program may still be forwarding"])?;
        operated.start_again()?;
        crowd.talk()?;
    }
    assert_eq!(crowd.ended(), BTreeMap::new());
    operated.does(&["stop", "--keep"])?;
    ensure!(operated.daemon.process.wait(PATIENCE)?.success());
    let file = lab.directory().join("operated.toml");
    ensure!(run(&lab, &["cleanup", "--config", &file.to_string_lossy()])?.status.success());
    assert_eq!(footprint(&lab, &operated.daemon.setup)?, before);
    Ok(())
}
