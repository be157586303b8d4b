//! One machine, from boot to power off: a command runs in it, and its output and exit code come back.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::Ended;
use super::emulator::Emulator;
use super::kernel::Kernel;
use crate::build::{self, Profile};
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

    /// `Linux 6.1.0-56-amd64`.
    pub(crate) fn kernel(&self) -> String {
        self.kernel.to_string()
    }

    /// Boots, runs the commands one after another in the root of the tree as root, and powers off. Their outputs, mixed, go to
    /// standard output.
    ///
    /// # Errors
    ///
    /// [`Ended`] for another exit code than 0, the last such, which is 124 where `limit` ran out; others when there was none.
    pub(crate) fn run(
        &self,
        commands: &[Vec<OsString>],
        environment: &[(&str, &OsStr)],
        limit: Duration,
    ) -> Result<()> {
        let shared = Shared::make()?;
        shared.write_script(commands, environment, limit)?;
        let mut vng = self.emulator.vng();
        // 9p, since virtiofs needs a daemon that Debian 12 has not.
        vng = vng.args(["--verbose", "--disable-kvm", "--force-9p", "--user", "root", "--cpus", "2", "--memory", "2G"]);
        vng = vng.arg("--rwdir").arg(&shared.folder).arg("--run").arg(self.kernel.image());
        vng = vng.arg("--exec").arg(format!("sh {}", quoted(shared.file("script").as_os_str())));
        let child = vng.start(&shared.file("console"))?;
        follow(child, &shared, limit + BOOT)?;
        match shared.status() {
            Some(0) => Ok(()),
            Some(code) => Err(Ended(code).into()),
            None => bail!("the virtual machine ended before its commands; its console:\n{}", shared.console()),
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
        bail!("the virtual machine was ended: {why}; its console:\n{}", shared.console());
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

/// A folder that the machine can write to; it goes when the machine is off.
#[derive(Debug)]
struct Shared {
    folder: PathBuf,
}

/// Removes the folders of those that were killed before they could.
fn sweep() -> Result<()> {
    let Ok(entries) = fs::read_dir(super::folder()) else { return Ok(()) };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix("run-")?.parse().ok()) else { continue };
        // Who is not there, not who may not be asked.
        if kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH) {
            fs::remove_dir_all(entry.path()).with_context(|| format!("can't remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

impl Shared {
    fn make() -> Result<Self> {
        sweep()?;
        let folder = super::folder().join(format!("run-{}", std::process::id()));
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("can't remove {}", folder.display()))?;
        }
        fs::create_dir_all(folder.join("bin")).with_context(|| format!("can't make {}", folder.display()))?;
        Ok(Self { folder })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The word, or a copy of the file that it names if that was built: a build meanwhile would take it away.
    fn copied(&self, word: &OsStr) -> Result<OsString> {
        let file = shell::root().join(word);
        if !file.is_file() || !file.starts_with(shell::target()) {
            return Ok(word.to_owned());
        }
        let copy = self.file("bin").join(file.file_name().unwrap_or_default());
        fs::copy(&file, &copy).with_context(|| format!("can't copy {} to {}", file.display(), copy.display()))?;
        Ok(copy.into())
    }

    /// Writes what the machine runs. Nothing goes by its console, which loses output without a terminal.
    fn write_script(&self, commands: &[Vec<OsString>], environment: &[(&str, &OsStr)], limit: Duration) -> Result<()> {
        // Copied to be found by its name.
        self.copied(build::binary(Profile::Debug).as_os_str())?;
        let mut lines = String::new();
        for (key, value) in environment {
            lines += &format!("export {key}={}\n", quoted(&self.copied(value)?));
        }
        for command in commands {
            let typed: Vec<String> = command.iter().map(|word| quoted(word)).collect();
            let words: Result<Vec<String>> = command.iter().map(|word| Ok(quoted(&self.copied(word)?))).collect();
            let (typed, words) = (quoted(OsStr::new(&typed.join(" "))), words?.join(" "));
            lines += &format!("printf '%s\\n' \"[$(uname -r)]\"' $ '{typed}\nlimited {words} || code=$?\n");
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let text = format!(
            "exec >{output} 2>&1 </dev/null\n\
             mount -t bpf bpf /sys/fs/bpf\n\
             mkdir /run/guest\n\
             export TMPDIR=/run/guest HOME=/root PATH={bin}:{path}:/usr/sbin:/sbin\n\
             cd {root}\n\
             end=$(($(date +%s) + {limit}))\n\
             limited() {{\n  \
               left=$((end - $(date +%s)))\n  \
               [ $left -gt 0 ] || return 124\n  \
               timeout -k 10 $left \"$@\"\n\
             }}\n\
             code=0\n\
             {lines}\
             echo $code >{status}\n",
            output = quoted(self.file("output").as_os_str()),
            bin = quoted(self.file("bin").as_os_str()),
            path = quoted(&path),
            root = quoted(shell::root().as_os_str()),
            limit = limit.as_secs().max(1),
            status = quoted(self.file("status").as_os_str()),
        );
        let script = self.file("script");
        fs::write(&script, text).with_context(|| format!("can't write {}", script.display()))
    }

    /// The end of what the machine's console showed.
    fn console(&self) -> String {
        let text = String::from_utf8_lossy(&fs::read(self.file("console")).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(CONSOLE_LINES)).map(|line| format!("{line}\n")).collect()
    }

    /// Hands on what is new of the output, which `file` is once there is some.
    fn copy_output(&self, file: &mut Option<File>) -> Result<()> {
        if file.is_none() {
            *file = File::open(self.file("output")).ok();
        }
        let Some(file) = file else { return Ok(()) };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).context("can't read what the virtual machine prints")?;
        let mut stdout = io::stdout().lock();
        stdout.write_all(&bytes).and_then(|()| stdout.flush()).context("can't print")
    }

    /// The command's exit code, if it came that far.
    fn status(&self) -> Option<u8> {
        fs::read_to_string(self.file("status")).ok()?.trim().parse().ok()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("can't remove {}: {error}", self.folder.display());
        }
    }
}
