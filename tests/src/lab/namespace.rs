//! A network namespace with a name, visible in `ip netns`, and work done inside it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};

use super::command::Cmd;

/// Where `ip netns` keeps names.
pub(super) const NAMES: &str = "/run/netns";

/// A network namespace; dropping it deletes the name, and with the last process or socket in it, the namespace.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    pub(super) fn create(name: String) -> Result<Self> {
        Cmd::new("ip").args(["netns", "add", &name]).run()?;
        let path = Path::new(NAMES).join(&name);
        let file = File::open(&path);
        if file.is_err() {
            delete(&name);
        }
        let file = file.with_context(|| format!("can't open {}", path.display()))?;
        Ok(Self { name, file })
    }

    /// The name: `ip netns` lists it, `nsenter --net=/run/netns/NAME` enters it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `/run/netns/NAME`.
    pub fn path(&self) -> PathBuf {
        Path::new(NAMES).join(&self.name)
    }

    /// A descriptor of the namespace, for a child to enter it.
    pub(super) fn descriptor(&self) -> Result<OwnedFd> {
        let copy = self.file.try_clone().with_context(|| format!("can't duplicate the descriptor of {}", self.name))?;
        Ok(OwnedFd::from(copy))
    }

    /// Runs `work` in a thread inside the namespace and waits for it. Sockets made there stay in the namespace and may
    /// be used from any thread afterwards. A panic in `work` goes on in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| -> Result<T> {
                setns(&self.file, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("can't enter the network namespace {}", self.name))?;
                Ok(work())
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A short command that will run in the namespace.
    pub fn command(&self, program: &str) -> Result<Cmd> {
        Ok(Cmd::new(program).inside(&self.name, self.descriptor()?))
    }

    /// Runs `ip` in the namespace, with arguments written as on a command line: `namespace.ip("link set eth0 down")`.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        self.command("ip")?.args(arguments.split_whitespace()).run()
    }

    /// Runs many `ip` commands in one process, each without the leading word `ip`; the first failure stops it.
    pub fn ip_batch(&self, lines: &[String]) -> Result<()> {
        let mut input = lines.join("\n");
        input.push('\n');
        self.command("ip")?.args(["-batch", "-"]).stdin(input).run()?;
        Ok(())
    }

    /// Sets a network setting of the namespace, named as below `/proc/sys/net`: `ipv4/ip_forward`.
    ///
    /// /proc/sys/net shows the settings of the *thread* that looks, so a thread inside is all it takes.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.sysctls(&[(key, value)])
    }

    /// Sets several network settings.
    pub fn sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            settings.iter().try_for_each(|(key, value)| {
                std::fs::write(Path::new("/proc/sys/net").join(key), value)
                    .with_context(|| format!("can't set net/{key} to {value} in {}", self.name))
            })
        })?
    }

    /// The line to type in another terminal to run `command` in this namespace.
    pub fn nsenter(&self, command: &str) -> String {
        format!("nsenter --net={} {command}", self.path().display())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        delete(&self.name);
    }
}

/// Deletes a name; a failure is told and not returned, since both callers are cleaning up.
pub(super) fn delete(name: &str) {
    let deleted = Cmd::new("ip").args(["netns", "delete", name]).run();
    if let Err(error) = deleted
        && Path::new(NAMES).join(name).exists()
    {
        eprintln!("lab: {error:#}");
    }
}
