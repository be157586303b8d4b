//! The configuration file: read, checked as a whole, every error reported at once.
//!
//! Opens no socket and asks no kernel: whether an interface exists or an address is free is not checked here.

mod access;
mod address;
mod diagnostic;
mod duration;
mod file;
mod global;
mod keepalived;
mod lines;
mod model;
mod persistence;
mod policy;
mod reader;
mod real_server;
mod report;
mod schema;
mod sorry_server;
mod suggest;
mod syntax;
mod timeouts;
mod tunnel;
mod virtual_server;
mod xdp;

#[cfg(test)]
mod tests;

use toml::de::DeTable;

pub use self::access::Files;
pub use self::diagnostic::{Diagnostic, Diagnostics};
pub use self::file::{LoadError, load};
use self::lines::Lines;
pub use self::model::{Backend, Config, Global, LogLevel, Timeouts, TunnelSources, Xdp, XdpMode};
use self::reader::Reader;
use self::report::Report;
pub use self::xdp::PIN_DIRECTORY;

/// As [`parse_with`], where none of the files that it names can be read.
///
/// # Errors
/// As there.
pub fn parse(name: &str, text: &str) -> Result<Config, Diagnostics> {
    parse_with(name, text, &|_| Err(std::io::ErrorKind::NotFound.into()))
}

/// Checks `text`, the contents of a file that messages call `name`, and what `files` gives for the files that it names.
///
/// # Errors
/// All that is wrong with it, in the order of the file.
pub fn parse_with(name: &str, text: &str, files: Files<'_>) -> Result<Config, Diagnostics> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let repaired = syntax::repair(text);
    let mut report = Report::new(text, &repaired);
    if !repaired.readable {
        return Err(report.finish(name));
    }
    let (document, _) = DeTable::parse_recoverable(&repaired.text);
    let root = Reader::open(&schema::ROOT, document.get_ref(), document.span(), &mut report);
    let global = global::read(&root, &mut report);
    let xdp = xdp::read(&root, global.as_ref().map(|global| global.backend), &mut report);
    let timeouts = timeouts::read(&root, &mut report);
    let virtual_servers = virtual_server::read_all(&root, files, &mut report);
    if let Some(xdp) = &xdp {
        tunnel::check(&root, &xdp.tunnel_sources, &virtual_servers, &mut report);
    }
    match (global, xdp) {
        (Some(global), Some(xdp)) if report.is_empty() => Ok(Config { global, xdp, timeouts, virtual_servers }),
        _ => Err(report.finish(name)),
    }
}

fn not_utf8(name: &str, bytes: &[u8], valid_up_to: usize) -> Diagnostics {
    let text = String::from_utf8_lossy(bytes);
    let lines = Lines::new(&text);
    let (line, column) = (lines.line(valid_up_to), lines.column(valid_up_to));
    let help = "save the file as UTF-8".to_owned();
    let error =
        Diagnostic::new(line, column, "a byte that is not UTF-8, must be UTF-8 as in all TOML".into(), Some(help));
    Diagnostics::new(name, vec![error.with_excerpt(diagnostic::Excerpt::new(lines.text(line), column, 1))])
}
