//! Which virtual server a packet is for.

use lb_common::connection::FlowKey;
use lb_common::service::{ServiceKey, VirtualServerEntry};

use crate::maps;

/// The virtual server that `flow` addresses.
#[inline(always)]
pub fn lookup(flow: &FlowKey) -> Option<&'static VirtualServerEntry> {
    let key = ServiceKey::new(flow.destination, flow.destination_port, flow.protocol);
    // SAFETY: the element may be replaced while it is read, but the kernel frees a removed one only after this program ends.
    unsafe { maps::VIRTUAL_SERVERS.get(key) }
}
