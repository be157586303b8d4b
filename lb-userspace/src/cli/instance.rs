//! Which instance a command means: its socket, its pins, and its virtual servers' names. Also where its daemon is dead.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use lb_common::net::Protocol;

use crate::config;
use crate::control::client::{ClientError, ask};
use crate::control::protocol::{Request, Response, Status};
use crate::datapath::xdp::pins::Pins;
use crate::instance::Paths;
use crate::model::Service;

/// Which daemon is meant.
#[derive(Clone, Debug)]
pub enum Target {
    /// The one with this socket.
    Socket(PathBuf),
    /// The one that runs this configuration.
    Config(PathBuf),
    /// The one that is this process.
    Process(u32),
    /// The instance of this name in the default runtime directory.
    Instance(String),
    /// The only one in the default runtime directory.
    Only,
}

/// What is known of an instance.
#[derive(Clone, Debug)]
pub struct Known {
    /// The folder of its pins.
    pub pins: PathBuf,
    /// Its virtual servers that have a name; none where only its daemon would know.
    pub names: BTreeMap<String, Service>,
}

/// The instance that is meant, or the exit code where the configuration that names it has errors.
///
/// # Errors
///
/// When there is none, several could be meant, or a daemon gave no usable answer.
pub fn find(target: &Target) -> anyhow::Result<Result<Known, ExitCode>> {
    let directory = config::Global::default().runtime_directory;
    let known = match target {
        Target::Config(file) => return Ok(super::load(file)?.map(|config| Known::configured(&config))),
        Target::Socket(path) => Known::reported(&ask(path, &Request::Status)?)?,
        Target::Process(pid) => Known::reported(&ask(&socket_of(*pid)?, &Request::Status)?)?,
        Target::Instance(name) => Known::running_or_left(&Paths::new(&directory, name).socket(), name)?,
        Target::Only => match only_socket(&directory) {
            Ok(socket) => {
                let name = socket.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
                Known::running_or_left(&socket, &name)?
            }
            // A dead daemon's socket may be gone, and its pins not.
            Err(error) => Known::only_left()?.ok_or(error)?,
        },
    };
    Ok(Ok(known))
}

/// The daemon's socket, or the exit code where the configuration that names it has errors.
///
/// # Errors
///
/// When there is none, or several could be meant.
pub fn socket(target: &Target) -> anyhow::Result<Result<PathBuf, ExitCode>> {
    let directory = config::Global::default().runtime_directory;
    match target {
        Target::Socket(path) => Ok(Ok(path.clone())),
        Target::Process(pid) => socket_of(*pid).map(Ok),
        Target::Config(file) => Ok(super::load(file)?
            .map(|config| Paths::new(&config.global.runtime_directory, &config.global.instance).socket())),
        Target::Instance(name) => Ok(Ok(Paths::new(&directory, name).socket())),
        Target::Only => only_socket(&directory).map(Ok),
    }
}

/// The socket of the daemon that is this process: beside the lock file that it holds open. So it is found whatever its
/// configuration says by now.
fn socket_of(pid: u32) -> anyhow::Result<PathBuf> {
    let folder = PathBuf::from(format!("/proc/{pid}/fd"));
    let files = entries(&folder, |_| true).with_context(|| format!("cannot see what process {pid} has open"))?;
    let locks = files.iter().filter_map(|file| fs::read_link(file).ok());
    let mut sockets =
        locks.filter(|lock| lock.extension().is_some_and(|e| e == "lock")).map(|l| l.with_extension("sock"));
    sockets.find(|socket| socket.exists()).with_context(|| format!("process {pid} is no evenkeel daemon that serves"))
}

fn only_socket(directory: &Path) -> anyhow::Result<PathBuf> {
    let sockets = entries(directory, |path| path.extension().is_some_and(|e| e == "sock")).unwrap_or_default();
    match sockets.as_slice() {
        [socket] => Ok(socket.clone()),
        [] => bail!("no daemon has a socket in {}; name another with --config or --socket", directory.display()),
        several => bail!("several instances run here, choose one with --instance: {}", names(several)),
    }
}

/// The entries of a folder that are meant, in order.
fn entries(directory: &Path, is_meant: impl Fn(&Path) -> bool) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
    let mut meant: Vec<PathBuf> = paths.filter(|path| is_meant(path)).collect();
    meant.sort();
    Ok(meant)
}

fn names(paths: &[PathBuf]) -> String {
    let name = |path: &PathBuf| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let names: Vec<String> = paths.iter().filter_map(name).collect();
    names.join(", ")
}

impl Known {
    fn configured(config: &config::Config) -> Self {
        let pins = Pins::new(&config.xdp.pin_directory, &config.global.instance);
        let named = |server: &crate::model::VirtualServer| Some((server.name.clone()?, server.service));
        Self { pins: pins.directory().to_owned(), names: config.virtual_servers.iter().filter_map(named).collect() }
    }

    fn reported(response: &Response) -> anyhow::Result<Self> {
        let Response::Status(status) = response else { bail!("the daemon answered another question") };
        Ok(Self::of_status(status))
    }

    fn of_status(status: &Status) -> Self {
        let named = |server: &crate::control::protocol::VirtualServer| {
            let service = Service { address: server.address, protocol: Protocol::named(&server.protocol)? };
            Some((server.name.clone()?, service))
        };
        Self {
            pins: PathBuf::from(&status.pin_directory),
            names: status.virtual_servers.iter().filter_map(named).collect(),
        }
    }

    /// What the daemon at `socket` says; where it is dead, the default folder for the pins of instance `name`.
    fn running_or_left(socket: &Path, name: &str) -> anyhow::Result<Self> {
        match ask(socket, &Request::Status) {
            Ok(response) => Self::reported(&response),
            Err(ClientError::NotRunning { .. }) => {
                let pins = Pins::new(Path::new(config::PIN_DIRECTORY), name);
                Ok(Self { pins: pins.directory().to_owned(), names: BTreeMap::new() })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The only instance with pins in the default folder; `None` where there is none.
    fn only_left() -> anyhow::Result<Option<Self>> {
        let has_table = |path: &Path| path.join("connections").exists();
        let left = entries(Path::new(config::PIN_DIRECTORY), has_table).unwrap_or_default();
        match left.as_slice() {
            [] => Ok(None),
            [pins] => Ok(Some(Self { pins: pins.clone(), names: BTreeMap::new() })),
            several => bail!("several instances are here, choose one with --instance: {}", names(several)),
        }
    }
}
