//! The smallest XDP program there is, on a port of the switch, in native mode.
//!
//! A veth carries XDP_TX and redirected frames only to a peer that has a program itself. Two system calls do it,
//! so that the lab needs no eBPF compiler and no loader.
#![expect(unsafe_code, reason = "bpf(2) has no wrapper in the standard library or nix")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail};
use nix::net::if_::if_nametoindex;

use super::namespace::Namespace;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_ATTACH_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// `r0 = XDP_PASS; exit`.
static PROGRAM: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];
/// What `bpftool prog` shows.
const NAME: [u8; 16] = *b"lab_xdp_pass\0\0\0\0";
static LICENSE: &CStr = c"Dual MIT/GPL";

/// The part of `union bpf_attr` for BPF_PROG_LOAD, up to the name (linux/bpf.h).
#[repr(C)]
struct ProgramLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

/// The part of `union bpf_attr` for BPF_LINK_CREATE (linux/bpf.h).
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// A program that passes everything, for as long as this lives: the kernel detaches it when the descriptor is closed,
/// also when the process is killed.
#[derive(Debug)]
pub(super) struct XdpPass {
    _link: OwnedFd,
}

impl XdpPass {
    /// Attaches to an interface of `namespace`; an error where native mode is not to be had.
    pub(super) fn attach(namespace: &Namespace, interface: &str) -> Result<Self> {
        let link = namespace.run(|| attach_here(interface))??;
        let shown = namespace.ip(&format!("-j -d link show dev {interface}"))?;
        // iproute2 prints the mode as IFLA_XDP_ATTACHED has it: 1 is native, 2 generic.
        if !shown.contains(r#""xdp":{"mode":1,"#) {
            bail!("XDP on {interface} of {} is not in native mode: {shown}", namespace.name());
        }
        Ok(Self { _link: link })
    }
}

fn attach_here(interface: &str) -> Result<OwnedFd> {
    let index = if_nametoindex(interface).with_context(|| format!("can't find the interface {interface}"))?;
    let mut load = ProgramLoad {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: 2,
        insns: PROGRAM.as_ptr().addr() as u64,
        license: LICENSE.as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: NAME,
    };
    let program = bpf(BPF_PROG_LOAD, &mut load).context("can't load the XDP_PASS program (bpf BPF_PROG_LOAD)")?;
    let mut create = LinkCreate {
        prog_fd: u32::try_from(program.as_raw_fd())?,
        target_ifindex: index,
        attach_type: BPF_ATTACH_XDP,
        flags: XDP_FLAGS_DRV_MODE,
    };
    bpf(BPF_LINK_CREATE, &mut create)
        .with_context(|| format!("can't attach XDP_PASS to {interface} in native mode (bpf BPF_LINK_CREATE)"))
}

/// bpf(2) for commands that return a descriptor.
fn bpf<T>(command: libc::c_int, attribute: &mut T) -> io::Result<OwnedFd> {
    let attribute: *mut T = attribute;
    // SAFETY: the pointer and the size are of one live attribute of the layout of `command`; the addresses in it are of
    // constants, and the kernel only reads them.
    let returned = unsafe { libc::syscall(libc::SYS_bpf, command, attribute, size_of::<T>()) };
    let descriptor = i32::try_from(returned).map_err(io::Error::other)?;
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, close-on-exec, and nothing else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
