//! Why the daemon did not start.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::{HandoverError, InstanceError};
use crate::datapath::DatapathError;
use crate::datapath::xdp::adoptable::ExamineError;
use crate::datapath::xdp::attach::AttachError;
use crate::datapath::xdp::object::LoadError;
use crate::datapath::xdp::pins::PinsError;
use crate::datapath::xdp::table::task::ScanError;
use crate::host::preflight::Problem;

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The host is not as it must be; everything that is wrong is listed.
    #[error("cannot start here:{}", Bullets(.0))]
    Unfit(Vec<Problem>),
    /// The instance is taken or its files cannot be used.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// No netlink socket.
    #[error("cannot open a netlink socket")]
    Netlink(#[source] io::Error),
    /// A netlink request failed.
    #[error("cannot read interfaces, addresses or neighbours by netlink")]
    NetlinkRequest(#[from] rtnetlink::Error),
    /// The kernel's random numbers could not be read.
    #[error("cannot read random numbers for the connection table's secret")]
    Random(#[source] io::Error),
    /// It could not be found out whether an earlier daemon's tables fit.
    #[error(transparent)]
    Examine(#[from] ExamineError),
    /// The XDP programs could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map could not be written.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// A map or link could not be pinned.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// The program could not be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The connection table cannot be scanned.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// The packet log could not be opened.
    #[error("cannot open the packet log of the XDP program")]
    PacketLog(#[from] aya_log::Error),
    /// It cannot be told whether packets are merged.
    #[error("cannot read the receive offloads of interface {interface}")]
    Features {
        /// The interface.
        interface: String,
        /// The driver's answer.
        #[source]
        source: io::Error,
    },
    /// An offload could not be switched off.
    #[error(
        "interface {interface} merges received packets ({feature}), which breaks forwarding, and will not stop; \
         try `ethtool -K {interface} {feature} off`, or take another interface"
    )]
    Offload {
        /// The interface.
        interface: String,
        /// The feature's kernel name.
        feature: &'static str,
        /// The driver's answer.
        #[source]
        source: io::Error,
    },
    /// Frames of VLANs could not be told from others.
    #[error(
        "interface {interface} takes the tags off frames ({feature}) and will not stop, so that those of VLAN device {vlans} \
         would look untagged and be served; try `ethtool -K {interface} {feature} off`, or list only the VLAN device, \
         or take another interface"
    )]
    Untagging {
        /// The interface.
        interface: String,
        /// The VLAN devices on it.
        vlans: String,
        /// The feature's kernel name.
        feature: &'static str,
        /// The driver's answer.
        #[source]
        source: io::Error,
    },
    /// The control socket could not be opened.
    #[error("cannot open the control socket {}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A signal has come before the start was complete.
    #[error("stopped by {0} before the start was complete")]
    Stopped(&'static str),
    /// The running daemon's place could not be taken.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// It cannot be told how this process was started.
    #[error("cannot read the name of this executable")]
    CommandLine(#[source] io::Error),
    /// Signals cannot be received.
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
}

impl StartError {
    pub(super) fn socket(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Socket { path, source }
    }
}

/// One problem inline, several as a list.
struct Bullets<'a>(&'a [Problem]);

impl fmt::Display for Bullets<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [only] => write!(f, " {only}"),
            several => several.iter().try_for_each(|problem| write!(f, "\n  - {problem}")),
        }
    }
}
