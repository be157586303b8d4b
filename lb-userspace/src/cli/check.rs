//! `evenkeel check FILE`: says whether a configuration is usable. Needs no root, and opens nothing but the file and those that it
//! names; what it may not read of the firewall it says nothing about.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use lb_common::service::Scheduler;

use crate::config::{self, Config, LoadError};
use crate::error::chain;
use crate::host::firewall;
use crate::model::VirtualServer;

const OK: u8 = 0;
const FAILED: u8 = 1;
const INVALID: u8 = 2;

/// Checks the configuration in `file`: a summary on stdout, or every error on stderr.
///
/// Exits 0 when the configuration is usable, 2 when it has errors, 1 when the file cannot be read.
pub fn check(file: &Path) -> ExitCode {
    let code = run(file, &firewall::warnings, &mut io::stdout().lock(), &mut io::stderr().lock());
    ExitCode::from(code)
}

fn run(
    file: &Path,
    of_the_host: &dyn Fn(&Config) -> Vec<String>,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> u8 {
    let (written, code) = match config::load(file) {
        Ok(config) => {
            let mut warned = warn(file, &config, stderr);
            for line in of_the_host(&config) {
                warned = warned.and_then(|()| writeln!(stderr, "{}: warning: {line}", file.display()));
            }
            (warned.and_then(|()| writeln!(stdout, "{}: ok: {}", file.display(), summary(&config))), OK)
        }
        Err(error @ LoadError::Read { .. }) => (writeln!(stderr, "evenkeel: {}", chain(&error)), FAILED),
        Err(LoadError::Invalid(diagnostics)) => (writeln!(stderr, "{diagnostics}"), INVALID),
    };
    match written {
        Ok(()) => code,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => code,
        Err(_) => code.max(FAILED),
    }
}

/// What is allowed, but seldom meant.
fn warn(file: &Path, config: &Config, stderr: &mut dyn Write) -> io::Result<()> {
    config.virtual_servers.iter().try_for_each(|server| {
        let warnings = drained(server).into_iter().chain(one_destination(server));
        let service = server.service;
        warnings
            .into_iter()
            .try_for_each(|what| writeln!(stderr, "{}: warning: virtual_server {service}: {what}", file.display()))
    })
}

/// Real servers are drained by weight 0, but rarely all of them.
fn drained(server: &VirtualServer) -> Option<String> {
    let takes_any = server.real_servers.iter().any(|real| real.weight.get() > 0);
    let consequence = match server.sorry_server {
        _ if takes_any => return None,
        Some(_) => "its sorry_server takes all new connections",
        None => "it takes no new connections",
    };
    Some(format!("every real_server has weight 0, {consequence}"))
}

/// A virtual server has one address, so that `dh` chooses one real server for all that it gets.
fn one_destination(server: &VirtualServer) -> Option<String> {
    let all_to_one = server.policy.scheduler == Scheduler::Dh && server.real_servers.len() > 1;
    let address = server.service.address.ip();
    all_to_one.then(|| {
        format!("scheduler \"dh\" goes by the destination, which is always {address}: one real_server takes every connection")
    })
}

fn summary(config: &Config) -> String {
    let virtual_servers = config.virtual_servers.len();
    let real_servers = config.virtual_servers.iter().map(|server| server.real_servers.len()).sum();
    let sorry_servers = config.virtual_servers.iter().filter(|server| server.sorry_server.is_some()).count();
    let sorry = if sorry_servers == 0 { String::new() } else { format!(", {}", count(sorry_servers, "sorry server")) };
    format!(
        "{}, {}{sorry}, backend {} on {}",
        count(virtual_servers, "virtual server"),
        count(real_servers, "real server"),
        config.global.backend.name(),
        config.xdp.interfaces.join(", "),
    )
}

fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct ClosedPipe;

    impl Write for ClosedPipe {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const GOOD: &str = r#"
[xdp]
interfaces = ["eth0", "eth1"]

[[virtual_server]]
address = "10.0.0.100:80"
protocol = "tcp"
scheduler = "rr"
forwarding = "nat"

[[virtual_server.real_server]]
address = "10.0.1.11"

[[virtual_server.real_server]]
address = "10.0.1.12"
"#;

    fn checked(text: &str) -> (u8, String, String) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("lb.toml");
        std::fs::write(&file, text).unwrap();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let code = run(&file, &|_| Vec::new(), &mut stdout, &mut stderr);
        let name = file.display().to_string();
        let [stdout, stderr] =
            [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap().replace(&name, "lb.toml"));
        (code, stdout, stderr)
    }

    #[test]
    fn a_usable_file_is_one_line_on_stdout() {
        let (code, stdout, stderr) = checked(GOOD);
        assert_eq!(stdout, "lb.toml: ok: 1 virtual server, 2 real servers, backend xdp on eth0, eth1\n");
        assert_eq!((code, stderr.as_str()), (0, ""));
    }

    #[test]
    fn a_virtual_server_that_is_drained_is_a_warning() {
        let drained = GOOD.replace("address = \"10.0.1.1", "weight = 0\naddress = \"10.0.1.1");
        let (code, stdout, stderr) = checked(&drained);
        assert_eq!((code, stdout.starts_with("lb.toml: ok: ")), (0, true));
        assert_eq!(
            stderr,
            "lb.toml: warning: virtual_server tcp 10.0.0.100:80: every real_server has weight 0, it takes no new connections\n"
        );
        assert_eq!(checked(&GOOD.replace("address = \"10.0.1.11", "weight = 0\naddress = \"10.0.1.11")).2, "");
    }

    #[test]
    fn a_sorry_server_is_counted_and_takes_what_drained_real_servers_do_not() {
        let sorry = format!("{GOOD}\n[virtual_server.sorry_server]\naddress = \"10.0.1.99\"\n");
        let (code, stdout, stderr) = checked(&sorry);
        assert_eq!(
            stdout,
            "lb.toml: ok: 1 virtual server, 2 real servers, 1 sorry server, backend xdp on eth0, eth1\n"
        );
        assert_eq!((code, stderr.as_str()), (0, ""));
        let (_, _, stderr) = checked(&sorry.replace("address = \"10.0.1.1", "weight = 0\naddress = \"10.0.1.1"));
        assert!(
            stderr.ends_with("every real_server has weight 0, its sorry_server takes all new connections\n"),
            "{stderr}"
        );
    }

    #[test]
    fn destination_hashing_of_one_destination_is_a_warning() {
        let (code, _, stderr) = checked(&GOOD.replace("\"rr\"", "\"dh\""));
        assert_eq!(code, 0);
        assert_eq!(
            stderr,
            "lb.toml: warning: virtual_server tcp 10.0.0.100:80: scheduler \"dh\" goes by the destination, which is always \
             10.0.0.100: one real_server takes every connection\n"
        );
    }

    #[test]
    fn an_unusable_file_is_reported_on_stderr() {
        let (code, stdout, stderr) = checked(&GOOD.replace(r#""tcp""#, r#""tpc""#));
        assert_eq!((code, stdout.as_str()), (2, ""));
        assert!(stderr.starts_with("lb.toml:7:12: error: "), "{stderr}");
        assert!(stderr.ends_with("lb.toml: 1 error\n"), "{stderr}");
    }

    #[test]
    fn a_file_that_cannot_be_read_names_path_and_cause() {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let code = run(Path::new("/nonexistent/lb.toml"), &|_| Vec::new(), &mut stdout, &mut stderr);
        let stderr = String::from_utf8(stderr).unwrap();
        assert_eq!(stderr, "evenkeel: cannot read /nonexistent/lb.toml: No such file or directory (os error 2)\n");
        assert_eq!(code, 1);
    }

    #[test]
    fn a_closed_pipe_is_not_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("lb.toml");
        std::fs::write(&file, GOOD).unwrap();
        assert_eq!(run(&file, &|_| Vec::new(), &mut ClosedPipe, &mut ClosedPipe), 0);
    }
}
