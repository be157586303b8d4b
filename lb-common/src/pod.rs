//! `aya::Pod` for the map types: user space may copy them to and from the kernel byte for byte.
//!
//! The enums among their fields hold only what this code wrote: a daemon reads no maps but those that it has created itself.

#![expect(unsafe_code, reason = "aya::Pod is an unsafe trait")]

use crate::connection::{ConnectionEntry, FlowKey, Timeouts};
use crate::counters::Counters;
use crate::interface::InterfaceEntry;
use crate::net::Address;
use crate::real::RealServerEntry;
use crate::service::{ServiceKey, VirtualServerEntry};

// SAFETY: repr(C), Copy, without padding (asserted by their sizes) and without references.
unsafe impl aya::Pod for Address {}
// SAFETY: as above.
unsafe impl aya::Pod for ConnectionEntry {}
// SAFETY: as above.
unsafe impl aya::Pod for Counters {}
// SAFETY: as above.
unsafe impl aya::Pod for FlowKey {}
// SAFETY: as above.
unsafe impl aya::Pod for InterfaceEntry {}
// SAFETY: as above.
unsafe impl aya::Pod for RealServerEntry {}
// SAFETY: as above.
unsafe impl aya::Pod for ServiceKey {}
// SAFETY: as above.
unsafe impl aya::Pod for VirtualServerEntry {}
// SAFETY: as above.
unsafe impl aya::Pod for Timeouts {}
