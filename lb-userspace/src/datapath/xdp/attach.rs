//! Attaching the program to interfaces, in the driver where that is possible, and pinning the links.
//!
//! Another program on the hook is named and refused, never replaced.

use std::path::PathBuf;

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, XdpMode as AyaMode, loaded_programs};
use tracing::warn;

use super::object::{self, LoadError};
use super::pins::{Pins, PinsError};
use crate::config::XdpMode;
use crate::host::link::Link;

/// The name of the load balancer's program in the object.
pub const PROGRAM: &str = "balance";

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachedMode {
    /// In the driver, before an skb exists.
    Native,
    /// In the kernel's generic path, after the skb is made.
    Generic,
}

impl AttachedMode {
    /// The word of the configuration file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// Why the program could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Somebody else's program is there.
    #[error(
        "interface {interface} already has XDP program {program:?} (id {id}), which is not this instance's and stays; \
         detach it with `ip link set dev {interface} xdp off` or leave {interface} out of xdp.interfaces"
    )]
    Occupied {
        /// The interface.
        interface: String,
        /// The program's name, as far as it could be read.
        program: String,
        /// Its id.
        id: u32,
    },
    /// The driver cannot.
    #[error(
        "interface {interface} takes no XDP program in native mode; \
         set xdp.mode = \"auto\" to fall back to the slower generic mode, or use another interface"
    )]
    NoNative {
        /// The interface.
        interface: String,
        /// The kernel's answer.
        #[source]
        source: ProgramError,
    },
    /// The kernel refused.
    #[error("cannot attach the XDP program to interface {interface}")]
    Refused {
        /// The interface.
        interface: String,
        /// The kernel's answer.
        #[source]
        source: ProgramError,
    },
    /// The kernel attached it in a way that cannot be pinned.
    #[error("the kernel gave no link for interface {interface}; Linux 6.1 or newer is needed")]
    NoLink {
        /// The interface.
        interface: String,
        /// aya's answer.
        #[source]
        source: LinkError,
    },
    /// The link could not be pinned.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// The object lacks the program.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// The program on one interface; dropping this leaves it attached, by its pin.
pub struct Attachment {
    /// The interface.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// How the program is attached.
    pub mode: AttachedMode,
    _link: PinnedLink,
}

/// Refuses an interface that has somebody's XDP program.
///
/// # Errors
///
/// [`AttachError::Occupied`] names it.
pub fn check_free(link: &Link) -> Result<(), AttachError> {
    let Some(id) = link.xdp_program else { return Ok(()) };
    let program = loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .unwrap_or_else(|| "unknown".to_owned());
    Err(AttachError::Occupied { interface: link.name.clone(), program, id })
}

/// Attaches the program named `program` to `link` as `mode` says; returns the link and the mode it got.
///
/// # Errors
///
/// [`AttachError`]; nothing is attached then.
pub fn attach(
    ebpf: &mut Ebpf,
    program: &'static str,
    link: &Link,
    mode: XdpMode,
) -> Result<(XdpLink, AttachedMode), AttachError> {
    check_free(link)?;
    let interface = || link.name.clone();
    let xdp = object::program(ebpf, program)?;
    let mut attach = |mode| xdp.attach_to_if_index(link.index, mode);
    let (id, attached) = match mode {
        XdpMode::Native => {
            let id =
                attach(AyaMode::Driver).map_err(|source| AttachError::NoNative { interface: interface(), source })?;
            (id, AttachedMode::Native)
        }
        XdpMode::Generic => (attach(AyaMode::Skb).map_err(refused(link))?, AttachedMode::Generic),
        XdpMode::Auto => match attach(AyaMode::Driver) {
            Ok(id) => (id, AttachedMode::Native),
            Err(reason) => {
                let reason = crate::error::chain(&reason);
                warn!(interface = link.name, %reason, "no native XDP here, taking the slower generic mode");
                (attach(AyaMode::Skb).map_err(refused(link))?, AttachedMode::Generic)
            }
        },
    };
    let taken = xdp.take_link(id).map_err(refused(link))?;
    Ok((taken, attached))
}

/// Attaches the load balancer to `link` and pins it, so that it stays when the daemon dies.
///
/// # Errors
///
/// [`AttachError`]; nothing is attached then.
pub fn attach_pinned(ebpf: &mut Ebpf, link: &Link, mode: XdpMode, pins: &Pins) -> Result<Attachment, AttachError> {
    let (taken, mode) = attach(ebpf, PROGRAM, link, mode)?;
    let path: PathBuf = pins.link(link.index);
    let fd = FdLink::try_from(taken).map_err(|source| AttachError::NoLink { interface: link.name.clone(), source })?;
    let pinned = fd.pin(&path).map_err(|source| PinsError::Pin { path, source })?;
    Ok(Attachment { interface: link.name.clone(), ifindex: link.index, mode, _link: pinned })
}

fn refused(link: &Link) -> impl Fn(ProgramError) -> AttachError {
    let interface = link.name.clone();
    move |source| AttachError::Refused { interface: interface.clone(), source }
}
