//! A really different build of the program, for which nothing is compiled.
//!
//! In a copy of the daemon's executable, all comparisons for equality of the XDP programs have their operands exchanged. They
//! decide as before, but the kernel knows each program by another tag.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// Puts it in the place of the executable `path`, as an upgrade would.
pub fn exchange(path: &Path) -> Result<()> {
    let mut bytes = fs::read(path)?;
    let object = object(&mut bytes).context("no BPF object is embedded")?;
    let (offset, length) = section(object, "xdp.frags").context("the object has no section xdp.frags")?;
    let code = object.get_mut(offset..offset + length).context("the section xdp.frags is cut off")?;
    let mut changed = 0;
    for instruction in code.as_chunks_mut::<8>().0 {
        // BPF_JEQ and BPF_JNE of two registers, in 64 and in 32 bits; both are in the second byte.
        if matches!(instruction[0], 0x1d | 0x5d | 0x1e | 0x5e) {
            instruction[1] = instruction[1].rotate_left(4);
            changed += 1;
        }
    }
    ensure!(changed > 0, "it compares nothing");
    let new = path.with_extension("new");
    fs::write(&new, &bytes)?;
    fs::set_permissions(&new, fs::metadata(path)?.permissions())?;
    Ok(fs::rename(new, path)?)
}

/// The embedded object: ELF of 64 bits, little-endian, for the machine EM_BPF (247), aligned as aya wants it.
fn object(executable: &mut [u8]) -> Option<&mut [u8]> {
    let is_it = |at: &usize| {
        let head = executable.get(*at..at + 20).unwrap_or_default();
        head.starts_with(b"\x7fELF\x02\x01") && head.ends_with(&[247, 0])
    };
    let at = (0..executable.len()).step_by(8).find(is_it)?;
    executable.get_mut(at..)
}

/// Offset and length of a section.
fn section(elf: &[u8], name: &str) -> Option<(usize, usize)> {
    let number = |at: usize, length: usize| -> Option<usize> {
        let mut bytes = [0; 8];
        bytes[..length].copy_from_slice(elf.get(at..at + length)?);
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    // e_shoff, e_shentsize, e_shnum and e_shstrndx; then sh_name, sh_offset and sh_size.
    let (table, size, count, names) = (number(0x28, 8)?, number(0x3a, 2)?, number(0x3c, 2)?, number(0x3e, 2)?);
    let extent =
        |index: usize| Some((number(table + index * size + 0x18, 8)?, number(table + index * size + 0x20, 8)?));
    let (names, _) = extent(names)?;
    let is_it = |index: &usize| -> Option<bool> {
        let text = elf.get(names + number(table + index * size, 4)?..)?;
        Some(text.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0)))
    };
    extent((0..count).find(|index| is_it(index) == Some(true))?)
}
