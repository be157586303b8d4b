//! Commands: each is printed before it runs, and named when it fails. Also where things lie in the tree.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// The folder with the workspace's Cargo.toml.
pub(crate) fn root() -> PathBuf {
    let package =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map(Path::to_owned).unwrap_or(package)
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    root().join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// Whether a program is on PATH, or where an administrator's PATH has it.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let administrator = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(administrator).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// A command, run in the root of the tree.
#[derive(Debug)]
pub(crate) struct Step {
    command: Command,
}

impl Step {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.current_dir(root());
        Self { command }
    }

    /// The cargo that runs us.
    pub(crate) fn cargo() -> Self {
        Self::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into())).without_cargo_run()
    }

    /// A command line, with a runner such as `sudo -E` in front of it if there is one.
    pub(crate) fn through(runner: Option<&str>, program: impl AsRef<OsStr>) -> Self {
        let mut words = runner.unwrap_or_default().split_whitespace();
        match words.next() {
            Some(first) => Self::new(first).args(words).arg(program),
            None => Self::new(program),
        }
    }

    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.command.args(arguments);
        self
    }

    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Runs it in another folder than the root of the tree.
    pub(crate) fn inside(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Puts a folder last on PATH; not shown, since the command does the same without.
    pub(crate) fn with_path(self, folder: PathBuf) -> Self {
        let path = env::var_os("PATH").unwrap_or_default();
        match env::join_paths(env::split_paths(&path).chain([folder])) {
            Ok(joined) => self.env("PATH", joined),
            Err(_) => self,
        }
    }

    /// Takes away what `cargo run` set for us and a cargo that we start would take for its user's wish.
    fn without_cargo_run(mut self) -> Self {
        for (key, _) in env::vars_os() {
            let name = key.to_string_lossy();
            let ours = name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
            if ours || name == "RUST_RECURSION_COUNT" {
                self.command.env_remove(&key);
            }
        }
        self
    }

    /// Takes away whatever would make another toolchain's cargo use ours: `cargo run` and rustup export much.
    pub(crate) fn without_our_toolchain(mut self) -> Self {
        const KEEP: [&str; 5] = ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR", "CARGO_TERM_"];
        for (key, _) in env::vars_os() {
            let name = key.to_string_lossy();
            let cargo = name.starts_with("CARGO") && !KEEP.iter().any(|kept| name.starts_with(kept));
            let rust = name.starts_with("RUSTC") || name.starts_with("RUSTFLAGS") || name == "RUSTUP_TOOLCHAIN";
            if cargo || rust || name == "RUST_RECURSION_COUNT" || name == "LD_LIBRARY_PATH" {
                self.command.env_remove(&key);
            }
        }
        self
    }

    /// Prints it and runs it; any exit code but 0 is an error.
    pub(crate) fn run(&mut self) -> Result<()> {
        eprintln!("$ {self}");
        let status = self.command.status().with_context(|| format!("can't start `{self}`"))?;
        if !status.success() {
            bail!("`{self}` failed ({status})");
        }
        Ok(())
    }

    /// Prints it and starts it, in a process group of its own, without input and with both outputs in a new file.
    pub(crate) fn start(&mut self, output: &Path) -> Result<Child> {
        eprintln!("$ {self}");
        let file = File::create(output).with_context(|| format!("can't make {}", output.display()))?;
        let errors = file.try_clone().with_context(|| format!("can't duplicate {}", output.display()))?;
        self.command.stdin(Stdio::null()).stdout(file).stderr(errors).process_group(0);
        self.command.spawn().with_context(|| format!("can't start `{self}`"))
    }

    /// Prints it and becomes it; returns only if that fails.
    pub(crate) fn exec(&mut self) -> Result<()> {
        eprintln!("$ {self}");
        let error = self.command.exec();
        Err(error).with_context(|| format!("can't start `{self}`"))
    }

    /// Prints it and runs it; returns standard output. Any exit code but 0 is an error.
    pub(crate) fn output(&mut self) -> Result<String> {
        eprintln!("$ {self}");
        let output = self.command.stderr(Stdio::inherit()).output().with_context(|| format!("can't start `{self}`"))?;
        if !output.status.success() {
            bail!("`{self}` failed ({})", output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Asks without a word on the terminal: standard output, or `None` if it can't be started or fails.
    pub(crate) fn ask(&mut self) -> Option<String> {
        let output = self.command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl fmt::Display for Step {
    /// As a person would type it.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, value) in
            self.command.get_envs().filter_map(|(key, value)| Some((key, value?))).filter(|(key, _)| *key != "PATH")
        {
            write!(out, "{}={} ", key.to_string_lossy(), quoted(value))?;
        }
        let program = self.command.get_program();
        // The cargo that runs us is the one that `cargo` finds.
        let program =
            if env::var_os("CARGO").is_some_and(|ours| ours == program) { OsStr::new("cargo") } else { program };
        write!(out, "{}", quoted(program))?;
        self.command.get_args().try_for_each(|argument| write!(out, " {}", quoted(argument)))
    }
}

/// A word as the shell needs it.
pub(crate) fn quoted(word: &OsStr) -> String {
    let text = OsString::from(word).to_string_lossy().into_owned();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=+./:,@%[]".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_read_as_typed() {
        let step = Step::new("cargo").args(["build", "-p", "a b"]).env("RUSTFLAGS", "-C x=y");
        assert_eq!(step.to_string(), "RUSTFLAGS='-C x=y' cargo build -p 'a b'");
        assert_eq!(Step::through(Some("sudo -E"), "ip").arg("link").to_string(), "sudo -E ip link");
        assert_eq!(Step::through(None, "ip").to_string(), "ip");
    }

    #[test]
    fn a_failure_names_the_command() {
        assert_eq!(Step::new("false").run().unwrap_err().to_string(), "`false` failed (exit status: 1)");
        assert_eq!(Step::new("no-such-program").run().unwrap_err().to_string(), "can't start `no-such-program`");
    }
}
