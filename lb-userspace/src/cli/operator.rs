//! `evenkeel drain`, `undrain` and `reload`: what operators ask of a running daemon.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::bail;

use super::instance::{Target, socket};
use crate::control::client::ask;
use crate::control::protocol::{Request, Response, Selector};

/// A real server as the command line names it: `ADDRESS` or `ADDRESS:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealServerName {
    pub(super) ip: IpAddr,
    pub(super) port: Option<u16>,
}

impl FromStr for RealServerName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { ip: address.ip(), port: Some(address.port()) });
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        match bare.parse() {
            Ok(ip) => Ok(Self { ip, port: None }),
            Err(_) => Err(format!("{text:?} is no \"ip\" or \"ip:port\"; with IPv6 write \"[ip]:port\"")),
        }
    }
}

/// Takes a real server out of the schedule, of `virtual_server` or of all, for `span` or until it is given back.
///
/// # Errors
///
/// When the daemon cannot be asked, or does not have that real server.
pub fn drain(
    target: &Target,
    name: RealServerName,
    virtual_server: Option<String>,
    span: Option<Duration>,
) -> anyhow::Result<ExitCode> {
    if span.is_some_and(|span| span.subsec_nanos() != 0 || span.is_zero()) {
        bail!("--for takes whole seconds, at least 1s");
    }
    let request = Request::Drain { real_server: selector(name, virtual_server), seconds: span.map(|s| s.as_secs()) };
    let done = match span {
        Some(span) => format!("drained for {}", humantime::format_duration(span)),
        None => "drained".to_owned(),
    };
    change(target, &request, &done)
}

/// Gives drained real servers back.
///
/// # Errors
///
/// When the daemon cannot be asked, or no such real server is drained.
pub fn undrain(target: &Target, name: RealServerName, virtual_server: Option<String>) -> anyhow::Result<ExitCode> {
    change(target, &Request::Undrain { real_server: selector(name, virtual_server) }, "given back")
}

/// Makes the daemon read its configuration again.
///
/// # Errors
///
/// When the daemon cannot be asked, or does not take the configuration: the old one holds then.
pub fn reload(target: &Target) -> anyhow::Result<ExitCode> {
    let socket = match socket(target)? {
        Ok(socket) => socket,
        Err(code) => return Ok(code),
    };
    let Response::Reloaded { changes } = ask(&socket, &Request::Reload)? else {
        bail!("the daemon answered another question");
    };
    let text = match changes {
        0 => "nothing has changed".to_owned(),
        1 => "1 virtual server has changed".to_owned(),
        several => format!("{several} virtual servers have changed"),
    };
    super::ignore_closed_pipe(writeln!(io::stdout(), "reloaded: {text}"))?;
    Ok(ExitCode::SUCCESS)
}

fn selector(RealServerName { ip, port }: RealServerName, virtual_server: Option<String>) -> Selector {
    Selector { ip, port, virtual_server }
}

fn change(target: &Target, request: &Request, done: &str) -> anyhow::Result<ExitCode> {
    let socket = match socket(target)? {
        Ok(socket) => socket,
        Err(code) => return Ok(code),
    };
    let Response::Changed(changed) = ask(&socket, request)? else {
        bail!("the daemon answered another question");
    };
    let mut stdout = io::stdout().lock();
    let written = changed.iter().try_for_each(|changed| {
        let connections = match changed.connections {
            0 => "no connections".to_owned(),
            1 => "1 connection".to_owned(),
            several => format!("{several} connections"),
        };
        writeln!(stdout, "{} of {}: {done}, {connections}", changed.real_server, changed.virtual_server)
    });
    super::ignore_closed_pipe(written)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_server_is_named_by_address_with_or_without_port() {
        let name = |text: &str| text.parse::<RealServerName>();
        assert_eq!(name("10.0.0.1"), Ok(RealServerName { ip: [10, 0, 0, 1].into(), port: None }));
        assert_eq!(name("10.0.0.1:80"), Ok(RealServerName { ip: [10, 0, 0, 1].into(), port: Some(80) }));
        let v6: IpAddr = "fd00::1".parse().unwrap();
        assert_eq!(name("fd00::1"), Ok(RealServerName { ip: v6, port: None }));
        assert_eq!(name("[fd00::1]"), Ok(RealServerName { ip: v6, port: None }));
        assert_eq!(name("[fd00::1]:80"), Ok(RealServerName { ip: v6, port: Some(80) }));
        assert!(name("web1").is_err());
    }
}
