//! What the packet path must know of an interface it is attached to.

use crate::net::MacAddress;

/// Value of `interfaces`, at the interface's index modulo [`crate::INTERFACES_LENGTH`].
///
/// Frames to another Ethernet address (flooded by a switch) are left alone, so that two directors never serve one packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceEntry {
    /// The interface that this slot is for; zero when the slot is free.
    pub ifindex: u32,
    /// Its Ethernet address.
    pub mac: MacAddress,
    /// Always zero.
    pub reserved: u16,
    /// The bond that it is a slave of: frames come in by the slave, but the routing table knows the bond only. Else zero.
    pub part_of: u32,
}

const _: () = assert!(size_of::<InterfaceEntry>() == 16);
