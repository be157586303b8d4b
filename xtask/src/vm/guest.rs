//! One machine, from boot to power off: a command runs in it, and its output and exit code come back.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::Ended;
use super::emulator::Emulator;
use super::kernel::Kernel;
use crate::shell::{self, quoted};

/// How long a machine may take to boot and to power off.
const BOOT: Duration = Duration::from_secs(120);
/// Lines of the console that are shown when a machine fails.
const CONSOLE_LINES: usize = 30;

/// A kernel and what boots it.
#[derive(Debug)]
pub(crate) struct Guest {
    kernel: Kernel,
    emulator: Emulator,
}

impl Guest {
    pub(super) fn new(kernel: Kernel, emulator: Emulator) -> Self {
        Self { kernel, emulator }
    }

    /// Boots, runs the command in the root of the tree as root, and powers off. Its outputs, mixed, go to standard output.
    ///
    /// # Errors
    ///
    /// [`Ended`] for another exit code than 0, which is 124 where `limit` ran out; others when there was no exit code.
    pub(crate) fn run(&self, command: &[OsString], environment: &[(&str, &OsStr)], limit: Duration) -> Result<()> {
        let shared = Shared::make()?;
        let command = shared.with_copies(command)?;
        let script = shared.write_script(&command, environment, limit)?;
        let words: Vec<String> = command.iter().map(|word| quoted(word)).collect();
        let mut vng = self.emulator.vng();
        // 9p, since virtiofs needs a daemon that Debian 12 has not.
        vng = vng.args(["--verbose", "--disable-kvm", "--force-9p", "--user", "root", "--cpus", "2", "--memory", "2G"]);
        vng = vng.arg("--rwdir").arg(&shared.folder).arg("--run").arg(self.kernel.image());
        vng = vng.arg("--exec").arg(format!("sh {}", quoted(script.as_os_str())));
        let console = shared.folder.join("console");
        let child = vng.start(&console)?;
        eprintln!("[{}]$ {}", self.kernel, words.join(" "));
        follow(child, &shared, limit + BOOT)?;
        match shared.status() {
            Some(0) => Ok(()),
            Some(code) => Err(Ended(code).into()),
            None => bail!("the virtual machine ended before its command; its console:\n{}", last_lines(&console)),
        }
    }
}

/// Copies what the machine prints until it is off; ends it when it takes too long, or when we are to end.
fn follow(mut child: Child, shared: &Shared, limit: Duration) -> Result<()> {
    let interrupted = interrupted()?;
    let group = Pid::from_raw(i32::try_from(child.id())?);
    let deadline = Instant::now() + limit;
    let mut output = None;
    loop {
        // In this order, so that what was printed just before the end is not lost.
        let ended = child.try_wait().context("can't wait for the virtual machine")?.is_some();
        shared.copy_output(&mut output)?;
        if ended {
            return Ok(());
        }
        let why = match (interrupted.load(Ordering::Relaxed), Instant::now() >= deadline) {
            (true, _) => "interrupted",
            (_, true) => "it did not end in time",
            _ => {
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
        };
        // vng, what it started, and QEMU: the group is ours alone.
        killpg(group, Signal::SIGKILL).context("can't end the virtual machine")?;
        child.wait().context("can't wait for the virtual machine")?;
        bail!("the virtual machine was ended: {why}; its console:\n{}", last_lines(&shared.folder.join("console")));
    }
}

/// Whether Ctrl-C was typed since the first call.
fn interrupted() -> Result<Arc<AtomicBool>> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    if let Some(flag) = FLAG.get() {
        return Ok(Arc::clone(flag));
    }
    let flag = Arc::clone(FLAG.get_or_init(Arc::default));
    let set = Arc::clone(&flag);
    ctrlc::set_handler(move || set.store(true, Ordering::Relaxed)).context("can't listen for Ctrl-C")?;
    Ok(flag)
}

fn last_lines(file: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(CONSOLE_LINES)).map(|line| format!("{line}\n")).collect()
}

/// A folder that the machine can write to; it goes when the machine is off.
#[derive(Debug)]
struct Shared {
    folder: PathBuf,
}

impl Shared {
    fn make() -> Result<Self> {
        let folder = super::folder().join(format!("run-{}", std::process::id()));
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("can't remove {}", folder.display()))?;
        }
        fs::create_dir_all(folder.join("bin")).with_context(|| format!("can't make {}", folder.display()))?;
        Ok(Self { folder })
    }

    /// Copies the daemon, and the files below target/ that `command` names: a build meanwhile would pull them away.
    fn with_copies(&self, command: &[OsString]) -> Result<Vec<OsString>> {
        let built = shell::target().join("debug/evenkeel");
        if built.is_file() {
            self.copy(&built)?;
        }
        let copied = |word: &OsString| {
            let path = shell::root().join(word);
            let is_built = path.is_file() && path.starts_with(shell::target());
            if is_built { self.copy(&path).map(OsString::from) } else { Ok(word.clone()) }
        };
        command.iter().map(copied).collect()
    }

    fn copy(&self, file: &Path) -> Result<PathBuf> {
        let copy = self.folder.join("bin").join(file.file_name().unwrap_or_default());
        fs::copy(file, &copy).with_context(|| format!("can't copy {} to {}", file.display(), copy.display()))?;
        Ok(copy)
    }

    /// What the machine runs. Nothing goes by its console, which loses output without a terminal.
    fn write_script(&self, command: &[OsString], environment: &[(&str, &OsStr)], limit: Duration) -> Result<PathBuf> {
        let file = |name: &str| quoted(self.folder.join(name).as_os_str());
        let exports: String =
            environment.iter().map(|(key, value)| format!("export {key}={}\n", quoted(value))).collect();
        let words: Vec<String> = command.iter().map(|word| quoted(word)).collect();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let text = format!(
            "exec >{output} 2>&1 </dev/null\n\
             mount -t bpf bpf /sys/fs/bpf\n\
             mkdir /run/guest\n\
             export TMPDIR=/run/guest HOME=/root PATH={bin}:{path}:/usr/sbin:/sbin\n\
             {exports}\
             cd {root}\n\
             timeout -k 10 {limit} {words}\n\
             echo $? >{status}\n",
            output = file("output"),
            bin = file("bin"),
            path = quoted(&path),
            root = quoted(shell::root().as_os_str()),
            limit = limit.as_secs().max(1),
            words = words.join(" "),
            status = file("status"),
        );
        let script = self.folder.join("script");
        fs::write(&script, text).with_context(|| format!("can't write {}", script.display()))?;
        Ok(script)
    }

    /// Hands on what is new of the output, which `file` is once there is some.
    fn copy_output(&self, file: &mut Option<File>) -> Result<()> {
        if file.is_none() {
            *file = File::open(self.folder.join("output")).ok();
        }
        let Some(file) = file else { return Ok(()) };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).context("can't read what the virtual machine prints")?;
        let mut stdout = io::stdout().lock();
        stdout.write_all(&bytes).and_then(|()| stdout.flush()).context("can't print")
    }

    /// The command's exit code, if it came that far.
    fn status(&self) -> Option<u8> {
        fs::read_to_string(self.folder.join("status")).ok()?.trim().parse().ok()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("can't remove {}: {error}", self.folder.display());
        }
    }
}
