//! The connection table: look-up, insertion, state and age of a flow's entry.
//!
//! Behind these functions stands an LRU hash map; nothing outside this file knows.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::bpf_jiffies64;
use lb_common::connection::{ConnectionEntry, ConnectionState, Direction, FlowKey, TICK_SHIFT};
use lb_common::drop_reason::DropReason;
use lb_common::net::{Address, Port, Protocol};

use crate::maps;
use crate::parse::tcp_flag;

/// The live entry of a flow.
#[derive(Clone, Copy)]
pub struct Connection(*mut ConnectionEntry);

impl Connection {
    /// Its fields.
    #[inline(always)]
    pub fn entry(&self) -> &'static ConnectionEntry {
        // SAFETY: the pointer comes from a map look-up; the kernel keeps the element's memory until the program ends.
        unsafe { &*self.0 }
    }

    /// Notes a packet: its time, and what its TCP flags say of the connection. Returns whether the coarse time has moved on.
    #[inline(always)]
    pub fn touch(&self, flags: u8) -> bool {
        let (now, old) = (tick(), self.entry().state);
        let new = after(old, flags);
        // SAFETY: as in `entry`; each field is one aligned store, and the last writer may win.
        unsafe {
            let moved_on = self.entry().last_seen != now;
            if moved_on {
                (*self.0).last_seen = now;
            }
            if new != old {
                (*self.0).state = new;
            }
            moved_on
        }
    }
}

/// The entry of `flow` in `direction`, unless it has been idle for longer than its state allows.
#[inline(always)]
pub fn lookup(flow: &FlowKey, direction: Direction) -> Option<Connection> {
    let connection = Connection(maps::CONNECTIONS.get_ptr_mut(flow)?);
    let entry = connection.entry();
    (entry.direction == direction && is_fresh(entry)).then_some(connection)
}

/// The entry that another virtual server's connection has at `flow`, where that one is still in use.
#[inline(always)]
pub fn live_rival(flow: &FlowKey, newcomer: &ConnectionEntry) -> Option<&'static ConnectionEntry> {
    let entry = Connection(maps::CONNECTIONS.get_ptr_mut(flow)?).entry();
    let same = is_of(entry, &newcomer.vip, newcomer.vip_port);
    (!same && is_fresh(entry) && !is_closing(entry)).then_some(entry)
}

/// Whether the entry belongs to a connection with `vip`:`port`.
#[inline(always)]
pub fn is_of(entry: &ConnectionEntry, vip: &Address, port: Port) -> bool {
    entry.vip.words() == vip.words() && entry.vip_port == port
}

/// Whether the connection has ended, so that its client may open another with the same ports.
#[inline(always)]
pub fn is_closing(entry: &ConnectionEntry) -> bool {
    entry.state == ConnectionState::Closing
}

/// Makes or replaces the entry of `flow`.
#[inline(always)]
pub fn insert(flow: &FlowKey, entry: &ConnectionEntry) -> Result<(), DropReason> {
    maps::CONNECTIONS.insert(flow, entry, u64::from(BPF_ANY)).map_err(|_| DropReason::TableFull)
}

/// Forgets the entry of `flow`.
#[inline(always)]
pub fn remove(flow: &FlowKey) {
    // It fails only where the entry is gone already.
    maps::CONNECTIONS.remove(flow).unwrap_or_default();
}

/// The state that a connection's first packet gives it.
#[inline(always)]
pub fn first_state(protocol: Protocol) -> ConnectionState {
    match protocol {
        Protocol::Tcp => ConnectionState::SynReceived,
        Protocol::Udp => ConnectionState::Udp,
    }
}

/// The coarse time: jiffies / 256, wrapping.
#[inline(always)]
pub fn tick() -> u32 {
    // SAFETY: the helper has no precondition.
    let jiffies = unsafe { bpf_jiffies64() };
    (jiffies >> TICK_SHIFT) as u32
}

#[inline(always)]
fn is_fresh(entry: &ConnectionEntry) -> bool {
    maps::TIMEOUTS.load().allow(entry.state, entry.last_seen, tick())
}

/// The state after a packet with `flags` in `state`.
#[inline(always)]
fn after(state: ConnectionState, flags: u8) -> ConnectionState {
    match state {
        ConnectionState::Udp => ConnectionState::Udp,
        ConnectionState::Closing => ConnectionState::Closing,
        ConnectionState::SynReceived | ConnectionState::Established => {
            if flags & (tcp_flag::FIN | tcp_flag::RST) != 0 {
                ConnectionState::Closing
            } else if flags & tcp_flag::SYN == 0 && flags & tcp_flag::ACK != 0 {
                ConnectionState::Established
            } else {
                state
            }
        }
    }
}
