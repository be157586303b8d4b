//! The smallest XDP program there is, on a port of the switch, in native mode.
//!
//! A veth carries XDP_TX and redirected frames only to a peer that has a program itself.

use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result, bail};
use nix::net::if_::if_nametoindex;

use super::namespace::Namespace;
use crate::bpf::{Instruction, Program};

const XDP_PASS: i32 = 2;

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
    let program = Program::load("lab_xdp_pass", &[Instruction::set(0, XDP_PASS), Instruction::EXIT])
        .context("can't load the XDP_PASS program (bpf BPF_PROG_LOAD)")?;
    program
        .attach(index)
        .with_context(|| format!("can't attach XDP_PASS to {interface} in native mode (bpf BPF_LINK_CREATE)"))
}
