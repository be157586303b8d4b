//! Detaching a pinned link at once.
//!
//! Removing the pin alone detaches too, but only when the kernel has freed the file's inode, some milliseconds later.

#![expect(unsafe_code, reason = "aya has no BPF_LINK_DETACH")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_DETACH: libc::c_int = 34;

/// `union bpf_attr` of `BPF_OBJ_GET`.
#[repr(C)]
#[derive(Default)]
struct GetAttribute {
    path: u64,
    fd: u32,
    flags: u32,
}

/// `union bpf_attr` of `BPF_LINK_DETACH` (Linux 5.9).
#[repr(C)]
#[derive(Default)]
struct DetachAttribute {
    fd: u32,
}

/// Detaches the link pinned at `path`; the pin stays, for a link that does nothing.
///
/// # Errors
///
/// When there is no link at `path`, or the kernel refuses.
pub fn detach(path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let get = GetAttribute { path: name.as_ptr().expose_provenance() as u64, ..GetAttribute::default() };
    let fd = bpf(BPF_OBJ_GET, &get)?;
    let fd = libc::c_int::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: BPF_OBJ_GET has just given this descriptor, and nothing else knows it.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    let fd = u32::try_from(link.as_raw_fd()).map_err(io::Error::other)?;
    bpf(BPF_LINK_DETACH, &DetachAttribute { fd }).map(drop)
}

fn bpf<T>(command: libc::c_int, attribute: &T) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is as large as is said, and what it points at lives as long as it does.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attribute), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
