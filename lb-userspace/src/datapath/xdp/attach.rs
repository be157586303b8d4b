//! Attaching the program to interfaces, in the driver where that is possible, and pinning the links.
//!
//! Another program on the hook is named and refused, never replaced.

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, XdpMode as AyaMode, loaded_links, loaded_programs};
use tracing::{info, warn};

use super::object::{self, LoadError};
use super::pins::{Pins, PinsError};
use crate::config::XdpMode;
use crate::error::chain;
use crate::host::link::{Kind, Link};
use crate::host::stack;

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
         {remedy}, or leave {interface} out of xdp.interfaces"
    )]
    Occupied {
        /// The interface.
        interface: String,
        /// The program's name, as far as it could be read.
        program: String,
        /// Its id.
        id: u32,
        /// How to be rid of it.
        remedy: String,
    },
    /// The driver cannot.
    #[error(
        "interface {interface} takes no XDP program in native mode ({reason}); \
         set xdp.mode = \"auto\" to fall back to the slower generic mode, or use another interface"
    )]
    NoNative {
        /// The interface.
        interface: String,
        /// What the kernel's answer means.
        reason: String,
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
    /// The program cannot be identified.
    #[error("cannot read the id of the XDP program")]
    Info(#[source] ProgramError),
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
    /// How the program was attached.
    pub mode: AttachedMode,
    /// Whether an earlier daemon's program had to go before this one came.
    pub had_gap: bool,
    /// What is wrong with its interface, as it was said last.
    pub failure: Option<String>,
    program: u32,
    is_attached: bool,
    /// None once its interface is gone.
    link: Option<FdLink>,
}

impl Attachment {
    fn new(link: &Link, mode: AttachedMode, program: u32, link_fd: FdLink) -> Self {
        let (interface, ifindex) = (link.name.clone(), link.index);
        let link = Some(link_fd);
        Self { interface, ifindex, mode, had_gap: false, failure: None, program, is_attached: true, link }
    }

    /// Compares with the interface as the kernel shows it now; true where the program has just been found missing.
    pub fn observe(&mut self, link: Option<&Link>) -> bool {
        let was_attached = self.is_attached;
        self.is_attached = link.is_some_and(|link| link.xdp_program == Some(self.program));
        was_attached && !self.is_attached
    }

    /// Its interface is gone; true where that has just been found.
    pub fn let_go(&mut self) -> bool {
        self.link.take().is_some()
    }

    /// Its interface among the `host`'s.
    pub fn of<'a>(&self, host: &'a [Link]) -> Option<&'a Link> {
        host.iter().find(|link| link.index == self.ifindex && self.link.is_some())
    }

    /// `native`, `generic` or `detached`.
    pub fn state(&self) -> &'static str {
        if self.is_attached { self.mode.name() } else { "detached" }
    }
}

/// Refuses an interface that has an XDP program other than `ours`.
///
/// # Errors
///
/// [`AttachError::Occupied`] names it.
pub fn check_free(link: &Link, ours: &[u32]) -> Result<(), AttachError> {
    let Some(id) = link.xdp_program.filter(|id| !ours.contains(id)) else { return Ok(()) };
    let program = loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .unwrap_or_else(|| "unknown".to_owned());
    // A program attached by a link is only removed by whoever holds the link, or by detaching the link.
    let held = loaded_links().filter_map(Result::ok).find(|held| held.program_id() == id);
    let remedy = match held {
        Some(_) if program == PROGRAM => {
            "if it is what a killed daemon of another instance left, run `evenkeel cleanup` with its configuration"
                .to_owned()
        }
        Some(held) => format!("end the process that attached it, or `bpftool link detach id {}`", held.id()),
        None => format!("detach it with `ip link set dev {} xdp off`", link.name),
    };
    Err(AttachError::Occupied { interface: link.name.clone(), program, id, remedy })
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
    let (aya_mode, attached) = match mode {
        XdpMode::Native => (AyaMode::Driver, AttachedMode::Native),
        XdpMode::Generic => (AyaMode::Skb, AttachedMode::Generic),
        XdpMode::Auto => {
            return match attach(ebpf, program, link, XdpMode::Native) {
                Err(AttachError::NoNative { reason, source, .. }) => {
                    let error = chain(&source);
                    warn!(interface = link.name, reason, error, "no native XDP here, taking the slower generic mode");
                    attach(ebpf, program, link, XdpMode::Generic)
                }
                other => other,
            };
        }
    };
    let interface = || link.name.clone();
    let xdp = object::program(ebpf, program)?;
    let id = xdp.attach_to_if_index(link.index, aya_mode).map_err(|source| {
        match native_obstacle(&source, link).filter(|_| attached == AttachedMode::Native) {
            Some(reason) => AttachError::NoNative { interface: interface(), reason, source },
            None => AttachError::Refused { interface: interface(), source },
        }
    })?;
    let taken = xdp.take_link(id).map_err(|source| AttachError::Refused { interface: interface(), source })?;
    Ok((taken, attached))
}

/// The largest MTU with which frames fit into a buffer of a page whatever the driver keeps of it (4096 bytes less headroom,
/// `skb_shared_info` and Ethernet header with VLAN tags), in bytes.
const ONE_BUFFER_MTU: u32 = 3_400;

/// Why the driver takes no program, where that is what the kernel's answer means; other answers are faults.
fn native_obstacle(error: &ProgramError, link: &Link) -> Option<String> {
    let ProgramError::SyscallError(error) = error else { return None };
    match error.io_error.raw_os_error()? {
        libc::EOPNOTSUPP => Some(
            match link.kind {
                Kind::Vlan => "a VLAN device gets its frames after the kernel has taken the tag off",
                Kind::MacVlan => "a macvlan gets its frames after the kernel has sorted them",
                Kind::Bond => "not all of its slaves have support, or its mode is none that has",
                Kind::Veth | Kind::Team | Kind::Bridge | Kind::Other => "its driver has no support",
            }
            .to_owned(),
        ),
        libc::ERANGE => Some(format!("an MTU is too large for it: {} here, or that of a veth device's peer", link.mtu)),
        libc::EINVAL | libc::E2BIG if link.mtu > ONE_BUFFER_MTU => Some(format!(
            "with an MTU of {} its driver would have to give frames in several buffers; lower it to {ONE_BUFFER_MTU}",
            link.mtu
        )),
        libc::EINVAL => Some("its driver refuses it as it is set up".to_owned()),
        _ => None,
    }
}

/// The mode to try on `links`, of the `host`'s: `auto` does not try native mode on veth devices, which lose frames in it
/// unless their peers are prepared for it, nor on what is made of them.
pub fn mode_for(host: &[Link], links: &[Link], mode: XdpMode) -> XdpMode {
    let veth = links.iter().find_map(|link| stack::veth(host, link));
    let Some(veth) = veth.filter(|_| mode == XdpMode::Auto) else { return mode };
    info!(interface = veth.name, "a veth device needs a prepared peer for native XDP, taking the slower generic mode");
    XdpMode::Generic
}

/// Puts the load balancer on all of `links` and pins it, so that it stays when the daemon dies.
///
/// Where an earlier daemon's program is, in the mode that is wanted now, it is exchanged on its link, without a gap. Other
/// interfaces come first, so that one which is refused costs nobody anything. Where the mode is another one, the program goes
/// before the new one comes, since the kernel has but one of them at a time.
///
/// With `auto`, what is there keeps its mode, and one interface that takes no native program makes all of them generic: frames
/// cannot be redirected from one kind to the other.
///
/// # Errors
///
/// [`AttachError`]; what is pinned by then stays, with the old or the new program.
pub fn attach_all(ebpf: &mut Ebpf, links: &[Link], mode: XdpMode, pins: &Pins) -> Result<Vec<Attachment>, AttachError> {
    let ours = pins.programs();
    let serves = |link: &&Link| link.xdp_program.is_some_and(|id| ours.contains(&id)) && pins.link(link.index).exists();
    let (serving, new): (Vec<&Link>, Vec<&Link>) = links.iter().partition(serves);
    let mode = match mode {
        XdpMode::Auto if serving.iter().any(|link| !link.xdp_is_native) => XdpMode::Generic,
        mode => mode,
    };
    let mut taken = Vec::new();
    for link in &new {
        taken.push(attach(ebpf, PROGRAM, link, mode)?);
    }
    let takes = |mode| taken.iter().any(|(_, taken)| *taken == mode);
    let is_generic = mode == XdpMode::Generic || takes(AttachedMode::Generic);
    if mode == XdpMode::Auto && is_generic && (takes(AttachedMode::Native) || !serving.is_empty()) {
        warn!("frames cannot go from native to generic interfaces, so all are taken in generic mode");
        drop(taken);
        return attach_all(ebpf, links, XdpMode::Generic, pins);
    }
    let program = object::program(ebpf, PROGRAM)?.info().map_err(AttachError::Info)?.id();
    let mut attachments = Vec::new();
    for (link, (taken, mode)) in new.into_iter().zip(taken) {
        attachments.push(Attachment::new(link, mode, program, pin(link, taken, pins)?));
    }
    for link in serving {
        attachments.push(if link.xdp_is_native == is_generic {
            change(ebpf, link, if is_generic { XdpMode::Generic } else { XdpMode::Native }, pins)?
        } else {
            replace(ebpf, link, pins)?
        });
    }
    attachments.sort_by_key(|attachment| links.iter().position(|link| link.index == attachment.ifindex));
    Ok(attachments)
}

/// Pins the link of an interface, where at most that of an interface that is gone has the name.
fn pin(link: &Link, taken: XdpLink, pins: &Pins) -> Result<FdLink, AttachError> {
    let path = pins.link(link.index);
    pins.remove_link(link.index)?;
    let fd = FdLink::try_from(taken).map_err(|source| AttachError::NoLink { interface: link.name.clone(), source })?;
    Ok(fd.pin(&path).map_err(|source| PinsError::Pin { path, source })?.into())
}

/// Puts the load balancer in the place of the program of a pinned link, atomically.
fn replace(ebpf: &mut Ebpf, link: &Link, pins: &Pins) -> Result<Attachment, AttachError> {
    let interface = || link.name.clone();
    let refused = |source| AttachError::Refused { interface: interface(), source };
    let no_link = |source| AttachError::NoLink { interface: interface(), source };
    let xdp = object::program(ebpf, PROGRAM)?;
    let program = xdp.info().map_err(AttachError::Info)?.id();
    let pinned = PinnedLink::from_pin(pins.link(link.index)).map_err(no_link)?;
    let old = XdpLink::try_from(FdLink::from(pinned)).map_err(no_link)?;
    let id = xdp.attach_to_link(old).map_err(refused)?;
    let link_fd = FdLink::try_from(xdp.take_link(id).map_err(refused)?).map_err(no_link)?;
    let mode = if link.xdp_is_native { AttachedMode::Native } else { AttachedMode::Generic };
    Ok(Attachment::new(link, mode, program, link_fd))
}

/// Attaches the load balancer in another mode than that which the program of a pinned link has.
fn change(ebpf: &mut Ebpf, link: &Link, mode: XdpMode, pins: &Pins) -> Result<Attachment, AttachError> {
    pins.remove_link(link.index)?;
    let (taken, mode) = attach(ebpf, PROGRAM, link, mode)?;
    warn!(
        interface = link.name,
        mode = mode.name(),
        "XDP changes its mode here: for a moment packets passed to the host, which may have reset connections"
    );
    let program = object::program(ebpf, PROGRAM)?.info().map_err(AttachError::Info)?.id();
    let link_fd = pin(link, taken, pins)?;
    Ok(Attachment { had_gap: true, ..Attachment::new(link, mode, program, link_fd) })
}
