//! Rules of the tree that no compiler checks: length of files, purity, where `unsafe` may be.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::demo_view::counted;
use crate::shell;

/// The longest a file may be, in lines.
const LINES_MAX: usize = 800;

/// Files whose code asks nothing of the outside: folders end with a slash, a bare name counts anywhere.
const PURE: [&str; 7] = [
    "lb-common/src/",
    "lb-userspace/src/model/",
    "lb-userspace/src/config/",
    "lb-userspace/src/schedule/",
    "fsm.rs",
    "plan.rs",
    "desired.rs",
];

/// What a pure file may not have, and the exceptions: file and word.
const IMPURE: [&str; 13] = [
    "fs::",
    "tokio::",
    "use tokio",
    "socket2",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "netlink",
    "aya",
    "Instant::now",
    "SystemTime::now",
];
const IMPURE_EXCEPT: [(&str, &str); 3] = [
    ("lb-common/src/pod.rs", "aya"),
    ("lb-userspace/src/config/file.rs", "fs::"),
    // Its tests read the files in configs/.
    ("lb-userspace/src/config/tests.rs", "fs::"),
];

/// The files and folders in which `unsafe` is allowed; keep it short.
const UNSAFE: [&str; 7] = [
    // Packet and map access are unsafe by nature there.
    "lb-ebpf/src/",
    "lb-common/src/pod.rs",
    "lb-userspace/src/datapath/xdp/detach.rs",
    "lb-userspace/src/datapath/xdp/mapped.rs",
    "lb-userspace/src/host/offload.rs",
    "tests/src/lab/child.rs",
    "tests/src/bpf.rs",
];

/// `cargo xtask tidy`.
pub(crate) fn run() -> Result<()> {
    let root = shell::root();
    let mut files = Vec::new();
    collect(&root, &mut files)?;
    let mut problems = Vec::new();
    for file in &files {
        let name = file.strip_prefix(&root).unwrap_or(file).to_string_lossy().into_owned();
        let text = fs::read_to_string(file).with_context(|| format!("can't read {name}"))?;
        problems.extend(check(&name, &text));
    }
    if problems.is_empty() {
        println!("tidy: {} files are in order", files.len());
        return Ok(());
    }
    problems.iter().for_each(|problem| eprintln!("{problem}"));
    bail!("tidy found {}", counted(problems.len() as u64, "problem"))
}

/// All problems of one file.
fn check(name: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let lines = text.lines().count();
    if lines > LINES_MAX {
        problems.push(format!("{name}: {lines} lines, at most {LINES_MAX}; split it by its nouns"));
    }
    if !is_rust(name) {
        return problems;
    }
    let (pure, may_be_unsafe) = (is_listed(name, &PURE), is_listed(name, &UNSAFE));
    for (line, number) in text.lines().zip(1..) {
        let number: usize = number;
        let code = code(line);
        if pure
            && let Some(word) =
                IMPURE.iter().find(|word| has_word(&code, word) && !IMPURE_EXCEPT.contains(&(name, word)))
        {
            problems.push(format!("{name}:{number}: `{word}` in a pure file; move what needs it to a task"));
        }
        if !may_be_unsafe && has_word(&code, "unsafe") {
            problems.push(format!("{name}:{number}: `unsafe` outside of the files listed in xtask/src/tidy.rs"));
        }
    }
    problems
}

/// The line without its comment and without what stands in its string literals.
fn code(line: &str) -> String {
    let line = line.split("//").next().unwrap_or_default();
    line.split('"').step_by(2).collect::<Vec<_>>().join("\"\"")
}

/// Whether `word` is in the code and is not only a part of a longer name, as in `unsafe_code`.
fn has_word(code: &str, word: &str) -> bool {
    let part = |letter: char| letter.is_alphanumeric() || letter == '_';
    code.match_indices(word).any(|(at, _)| {
        let before = code.get(..at).and_then(|text| text.chars().next_back());
        let after = code.get(at + word.len()..).and_then(|text| text.chars().next());
        // A word that ends in `::` ends there, whatever follows.
        !before.is_some_and(part) && (word.ends_with(':') || !after.is_some_and(part))
    })
}

fn is_listed(name: &str, list: &[&str]) -> bool {
    list.iter().any(|entry| match entry.ends_with('/') {
        true => name.starts_with(entry),
        false => name == *entry || Path::new(name).file_name().is_some_and(|file| file == *entry),
    })
}

fn is_rust(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "rs")
}

/// Source files and texts below `folder`, without what is built and without hidden folders.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("can't read {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("can't read {}", folder.display()))?;
        let (path, name) = (entry.path(), entry.file_name());
        let hidden = name.to_string_lossy().starts_with('.');
        let kind = entry.file_type().with_context(|| format!("can't look at {}", path.display()))?;
        if kind.is_dir() && !hidden && name != "target" {
            collect(&path, files)?;
        } else if kind.is_file() && path.extension().is_some_and(|kind| kind == "rs" || kind == "toml" || kind == "md")
        {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_files_are_found() {
        assert!(check("a/b.rs", &"x\n".repeat(800)).is_empty());
        assert_eq!(check("a/b.rs", &"x\n".repeat(801)).len(), 1);
    }

    #[test]
    fn impure_code_is_found_in_pure_files_only() {
        let text = "//! No tokio here.\nlet now = Instant::now();\n";
        assert!(check("lb-userspace/src/vrrp/task.rs", text).is_empty());
        let problems = check("lb-userspace/src/vrrp/fsm.rs", text);
        assert_eq!(
            problems,
            ["lb-userspace/src/vrrp/fsm.rs:2: `Instant::now` in a pure file; move what needs it to a task"]
        );
        assert_eq!(check("lb-common/src/net.rs", "use tokio::net;").len(), 1);
        assert_eq!(check("lb-common/src/net.rs", "impl aya::Pod for X {}").len(), 1);
        assert!(check("lb-common/src/pod.rs", "impl aya::Pod for X {}").is_empty());
        assert!(check("lb-userspace/src/config/xdp.rs", "return \"aya:: and netlink\";").is_empty());
    }

    #[test]
    fn unsafe_code_is_found_outside_of_the_list() {
        assert_eq!(check("lb-userspace/src/main.rs", "    unsafe { f() }\n").len(), 1);
        assert!(check("lb-userspace/src/main.rs", "#![expect(unsafe_code)] // unsafe\n").is_empty());
        assert!(check("tests/src/lab/child.rs", "unsafe { f() }").is_empty());
    }
}
