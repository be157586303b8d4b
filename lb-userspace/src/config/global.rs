//! `[global]`: the daemon as a whole.

use std::path::PathBuf;

use toml::Spanned;

use super::model::{Backend, Global, LogLevel};
use super::reader::{Reader, Words};
use super::report::Report;
use super::schema;

const INSTANCE: &str = "evenkeel";
const INSTANCE_LENGTH_MAX: usize = 32;
const RUNTIME_DIRECTORY: &str = "/run/evenkeel";

/// The words of `backend`.
pub static BACKENDS: Words<Backend> = Words { now: &[("xdp", Backend::Xdp)], later: &["ipvs"], never: &[] };
/// The words of `log_level`.
pub static LOG_LEVELS: Words<LogLevel> = Words {
    now: &[
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ],
    later: &[],
    never: &[],
};

impl Default for Global {
    fn default() -> Self {
        Self {
            instance: INSTANCE.into(),
            backend: Backend::Xdp,
            runtime_directory: RUNTIME_DIRECTORY.into(),
            log_level: LogLevel::Info,
        }
    }
}

/// Reads `[global]`; each value that is missing has its default. `None` when it asks for no backend that there is.
pub fn read(root: &Reader<'_>, report: &mut Report<'_>) -> Option<Global> {
    let mut global = Global::default();
    let Some(table) = root.table("global", &schema::GLOBAL, report) else { return Some(global) };
    let Global { instance, backend, runtime_directory, log_level } = &mut global;
    if let Some(written) = table.string("instance", report) {
        check_instance(&written, &table, report);
        *instance = (*written.get_ref()).to_owned();
    }
    let asked = table.word("backend", &BACKENDS, report);
    *backend = asked.unwrap_or(*backend);
    if let Some(written) = path(&table, "runtime_directory", report) {
        *runtime_directory = written;
    }
    if let Some(written) = table.word("log_level", &LOG_LEVELS, report) {
        *log_level = written;
    }
    (asked.is_some() || !table.has("backend")).then_some(global)
}

fn check_instance(written: &Spanned<&str>, table: &Reader<'_>, report: &mut Report<'_>) {
    let name = *written.get_ref();
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-');
    if !name.is_empty() && name.len() <= INSTANCE_LENGTH_MAX && name.chars().all(allowed) {
        return;
    }
    let message = format!(
        "{} is \"{}\", must be 1..={INSTANCE_LENGTH_MAX} of the characters a-z 0-9 _ -",
        table.path("instance"),
        name.escape_debug()
    );
    let help = "it names the socket, the lock and the pin folder of this instance".to_owned();
    report.error(&written.span(), message, Some(help));
}

/// An absolute path at `key`.
pub fn path(table: &Reader<'_>, key: &'static str, report: &mut Report<'_>) -> Option<PathBuf> {
    let written = table.string(key, report)?;
    let text = *written.get_ref();
    if text.starts_with('/') && !text.contains(char::is_control) {
        return Some(text.into());
    }
    let message = format!("{} is \"{}\", must be an absolute path", table.path(key), text.escape_debug());
    let relative = text.trim_start_matches(['.', '/']);
    let help = if relative.is_empty() { None } else { Some("start it with \"/\"".to_owned()) };
    report.error(&written.span(), message, help);
    None
}
