//! The decapsulator of a `tun` real server, for kernels without a tunnel device.
//!
//! Nothing is pinned: it ends with its process, however that ends.

use std::net::IpAddr;

use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError};
use aya::programs::xdp::XdpLink;
use lb_common::net::Address;

use super::attach::{self, AttachError, AttachedMode};
use super::maps::Maps;
use super::object::{self, LoadError, LoadOptions};
use crate::config::XdpMode;
use crate::datapath::DatapathError;
use crate::host::link::Link;

/// The name of the decapsulator's program in the object.
const PROGRAM: &str = "decapsulate";
const VIPS: &str = "decap_vips";
const COUNTERS: &str = "decap_counters";

/// Why the decapsulator could not start.
#[derive(Debug, thiserror::Error)]
pub enum DecapError {
    /// The program could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A map could not be used.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// The program could not be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// The running decapsulator; dropping it detaches the program.
pub struct Decapsulator {
    maps: Maps,
    /// How the program is attached.
    pub mode: AttachedMode,
    _link: XdpLink,
}

/// Packets unwrapped so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwrapped {
    /// IPv4 in IPv4.
    pub ipip: u64,
    /// IPv6 in IPv4.
    pub six_in_four: u64,
    /// IPv4 in IPv6.
    pub four_in_six: u64,
    /// IPv6 in IPv6.
    pub ip6ip6: u64,
    /// Dropped for a congestion mark that the sender would not have understood.
    pub congested: u64,
}

impl Decapsulator {
    /// Attaches to `link`, for packets whose inner destination is one of `vips`.
    ///
    /// # Errors
    ///
    /// As [`DecapError`] tells; nothing is attached then.
    pub fn start(link: &Link, vips: &[IpAddr], mode: XdpMode) -> Result<Self, DecapError> {
        let mut ebpf = object::load(PROGRAM, &[VIPS, COUNTERS], &LoadOptions::SMALLEST)?;
        set_vips(&mut ebpf, vips)?;
        attach::check_free(link, &[])?;
        let (link, mode) = attach::attach(&mut ebpf, PROGRAM, link, mode)?;
        Ok(Self { maps: Maps::new(ebpf), mode, _link: link })
    }

    /// How many packets it has unwrapped.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] from the kernel.
    pub fn unwrapped(&self) -> Result<Unwrapped, DatapathError> {
        let sum = |index| self.maps.sum::<u64>(COUNTERS, index);
        Ok(Unwrapped { ipip: sum(0)?, six_in_four: sum(1)?, four_in_six: sum(2)?, ip6ip6: sum(3)?, congested: sum(4)? })
    }
}

fn set_vips(ebpf: &mut Ebpf, vips: &[IpAddr]) -> Result<(), DatapathError> {
    let failed = |source| DatapathError::Map { action: "write", map: VIPS, source };
    let map = ebpf.map_mut(VIPS).ok_or_else(|| failed(MapError::InvalidName { name: VIPS.to_owned() }))?;
    let mut map = HashMap::<&mut MapData, Address, u32>::try_from(map).map_err(failed)?;
    for vip in vips {
        map.insert(Address::from(*vip), 1, 0).map_err(failed)?;
    }
    Ok(())
}
