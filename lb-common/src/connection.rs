//! The connection table: which real server a connection belongs to, in slots of 16 bytes and buckets of two cache lines.
//!
//! Layout and arithmetic only. Who may change a slot, and how, stands in ARCHITECTURE.md.

use crate::net::{Address, Port};

/// Slots in a bucket; a connection has two candidate buckets.
pub const SLOTS: usize = 8;

/// How full the table may be, in percent, before a new connection may find no free slot in either of its buckets.
pub const FILL_PERCENT: u32 = 60;

/// Buckets of a table for `connections` connections at [`FILL_PERCENT`].
pub const fn buckets_for(connections: u32) -> u32 {
    let slots = (connections as u64 * 100).div_ceil(FILL_PERCENT as u64);
    let buckets = slots.div_ceil(SLOTS as u64);
    #[expect(clippy::cast_possible_truncation, reason = "fewer than connections")]
    {
        buckets as u32
    }
}

/// A place for one connection. Two words: the packet path reads and changes each as a whole.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Which connection: [`crate::hash::exact_key`] or [`crate::hash::fingerprint`]. What a freed slot holds means nothing.
    pub key: u64,
    /// Index into `real_servers`.
    pub real_server: u16,
    /// A [`State`]; zero for a free slot.
    pub state: u8,
    /// The low octet of the real server's generation when the connection was made; another one now means the slot is void.
    pub generation: u8,
    /// Coarse time of the last packet: jiffies / 256, modulo 65,536.
    pub last_seen: u16,
    /// Index into `client_hops`, the way back to the client of a `nat` connection; zero: not known.
    pub client_hop: u16,
}

const _: () = assert!(size_of::<Slot>() == 16);

/// Value of `connections`.
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// In no order.
    pub slots: [Slot; SLOTS],
}

const _: () = assert!(size_of::<Bucket>() == 128);

/// The second word of a slot, as one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta(pub u64);

impl Meta {
    /// A free slot's.
    pub const FREE: Self = Self(0);
    /// While the slot is being rewritten.
    pub const LOCKED: Self = Self((State::LOCKED as u64) << 16);

    /// The word of a connection.
    #[inline(always)]
    pub const fn new(real_server: u16, state: u8, generation: u8, last_seen: u16, client_hop: u16) -> Self {
        Self(
            real_server as u64
                | (state as u64) << 16
                | (generation as u64) << 24
                | (last_seen as u64) << 32
                | (client_hop as u64) << 48,
        )
    }

    /// Index into `real_servers`.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a part of the word")]
    pub const fn real_server(self) -> u16 {
        self.0 as u16
    }

    /// The state's number.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a part of the word")]
    pub const fn state(self) -> u8 {
        (self.0 >> 16) as u8
    }

    /// The low octet of the real server's generation.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a part of the word")]
    pub const fn generation(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// Coarse time of the last packet.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a part of the word")]
    pub const fn last_seen(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// Index into `client_hops`.
    #[inline(always)]
    pub const fn client_hop(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// The same word in another state, at another time.
    #[inline(always)]
    pub const fn moved(self, state: u8, now: u16) -> Self {
        Self(self.0 & !0x0000_ffff_00ff_0000 | (state as u64) << 16 | (now as u64) << 32)
    }

    /// The same word with another way back to the client.
    #[inline(always)]
    pub const fn led_back_by(self, client_hop: u16) -> Self {
        Self(self.0 & 0x0000_ffff_ffff_ffff | (client_hop as u64) << 48)
    }
}

impl From<Slot> for Meta {
    fn from(slot: Slot) -> Self {
        let Slot { key: _, real_server, state, generation, last_seen, client_hop } = slot;
        Self::new(real_server, state, generation, last_seen, client_hop)
    }
}

/// How far a connection has come. The high four bits are its class: the higher, the better it is protected.
///
/// A newcomer may take the slot of a connection of a class that is not above its own, and never one of class 5.
pub struct State;

impl State {
    /// A free slot.
    pub const FREE: u8 = 0;
    /// TCP: the client's SYN was forwarded, nothing has followed.
    pub const OPENING: u8 = 0x20;
    /// UDP: one datagram was forwarded.
    pub const UDP_NEW: u8 = 0x21;
    /// A persistence template of which no connection has been established.
    pub const TEMPLATE_NEW: u8 = 0x22;
    /// TCP: the client has sent its FIN.
    pub const CLIENT_FIN: u8 = 0x30;
    /// TCP: the real server has sent its FIN (`nat` only).
    pub const SERVER_FIN: u8 = 0x31;
    /// TCP: both have sent a FIN (`nat` only).
    pub const BOTH_FIN: u8 = 0x32;
    /// TCP: either has sent a RST.
    pub const CLOSED: u8 = 0x33;
    /// TCP: established, by one packet of the client.
    pub const SETTLING: u8 = 0x40;
    /// TCP: established, by more packets than one.
    pub const ESTABLISHED: u8 = 0x50;
    /// UDP: more than one datagram was forwarded.
    pub const UDP: u8 = 0x51;
    /// A persistence template with a connection that was established.
    pub const TEMPLATE: u8 = 0x52;
    /// UDP by `nat`: the client's last datagram went to the real server's own address, so that answers are left alone.
    pub const UDP_DIRECT: u8 = 0x53;
    /// SCTP: the client's INIT was forwarded, nothing has followed.
    pub const SCTP_OPENING: u8 = 0x23;
    /// The slot is being rewritten; never a victim.
    pub const LOCKED: u8 = 0x70;

    /// 2 half-open, 3 closing, 4 established by one packet, 5 established; 0 free, 7 locked.
    #[inline(always)]
    pub const fn class(state: u8) -> u8 {
        state >> 4
    }

    /// Whether IPVS counts it as an active connection: TCP from its SYN until a FIN or RST (`tcp_state_active` since Linux
    /// 4.8), so that a burst of SYNs is spread too; SCTP only while it is established. All others but templates are inactive.
    #[inline(always)]
    pub const fn is_active(state: u8) -> bool {
        state == Self::OPENING || state == Self::SETTLING || state == Self::ESTABLISHED
    }

    /// Whether it is a persistence template, which no counter knows.
    #[inline(always)]
    pub const fn is_template(state: u8) -> bool {
        state == Self::TEMPLATE_NEW || state == Self::TEMPLATE
    }

    /// Whether the connection has ended, so that its client may open another with the same ports.
    #[inline(always)]
    pub const fn is_closing(state: u8) -> bool {
        Self::class(state) == 3
    }

    /// The state's name in `evenkeel connections`; `None` for a number that is no state of a connection.
    pub const fn name(state: u8) -> Option<&'static str> {
        Some(match state {
            Self::OPENING => "opening",
            Self::SCTP_OPENING => "sctp-opening",
            Self::UDP_NEW => "udp-new",
            Self::TEMPLATE_NEW => "template-new",
            Self::CLIENT_FIN => "client-fin",
            Self::SERVER_FIN => "server-fin",
            Self::BOTH_FIN => "both-fin",
            Self::CLOSED => "closed",
            Self::SETTLING => "established-new",
            Self::ESTABLISHED => "established",
            Self::UDP => "udp",
            Self::TEMPLATE => "template",
            Self::UDP_DIRECT => "udp-direct",
            _ => return None,
        })
    }
}

/// Value of `tuples`, one beside each slot of `connections`: what a fingerprint cannot tell.
///
/// Written when a connection is entered, read by user space only. VIP, protocol and the virtual server's port follow from
/// the real server; IPv4 connections with a fixed port need no tuple, their key holds it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// The client's address; for a persistence template, the client's network.
    pub client: Address,
    /// The client's port; zero for a persistence template.
    pub client_port: Port,
    /// The port that the client addressed: the virtual server's own, unless that serves all ports.
    pub vip_port: Port,
}

const _: () = assert!(size_of::<Tuple>() == 20);

/// The tuples of a bucket.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TupleBucket {
    /// In the order of the slots.
    pub tuples: [Tuple; SLOTS],
}

const _: () = assert!(size_of::<TupleBucket>() == 160);

/// Jiffies are shifted by this to the coarse tick of [`Slot::last_seen`].
pub const TICK_SHIFT: u32 = 8;

/// An age above this is none: another CPU has noted a later tick than the one that was read.
pub const AGE_MAX: u16 = 0xfff0;

/// The longest timeout, in ticks.
pub const TIMEOUT_MAX: u16 = 0xff00;

/// How long an idle connection stays valid, in coarse ticks of 256 jiffies, by its state's number.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Zero for numbers that are no state; 65,535 for a locked slot.
    pub ticks: [u16; 128],
}

impl Timeouts {
    /// The timeouts of each kind of state, in ticks; a template lives as long as its virtual server says.
    #[expect(clippy::indexing_slicing, reason = "states are constants below 128")]
    pub const fn new(syn: u16, tcp: u16, tcp_fin: u16, reset: u16, udp: u16) -> Self {
        let mut ticks = [0; 128];
        ticks[State::OPENING as usize] = syn;
        ticks[State::SCTP_OPENING as usize] = syn;
        ticks[State::UDP_NEW as usize] = udp;
        ticks[State::TEMPLATE_NEW as usize] = syn;
        ticks[State::CLIENT_FIN as usize] = tcp_fin;
        ticks[State::SERVER_FIN as usize] = tcp_fin;
        ticks[State::BOTH_FIN as usize] = tcp_fin;
        ticks[State::CLOSED as usize] = reset;
        ticks[State::SETTLING as usize] = tcp;
        ticks[State::ESTABLISHED as usize] = tcp;
        ticks[State::UDP as usize] = udp;
        ticks[State::UDP_DIRECT as usize] = udp;
        ticks[State::TEMPLATE as usize] = TIMEOUT_MAX;
        // A slot that is being rewritten has no age.
        ticks[State::LOCKED as usize] = u16::MAX;
        Self { ticks }
    }

    /// IPVS's defaults on a kernel with `hz` jiffies a second: 900, 120 and 300 s for established and closing TCP and for
    /// UDP, which `ipvsadm --set` changes there; 60 s half-open, 10 s after a reset.
    pub const fn ipvs_defaults(hz: u32) -> Self {
        Self::new(ticks(60, hz), ticks(900, hz), ticks(120, hz), ticks(10, hz), ticks(300, hz))
    }

    /// The timeout of a state, in ticks.
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "the index is masked")]
    pub const fn of(&self, state: u8) -> u16 {
        self.ticks[(state & 0x7f) as usize]
    }
}

/// `seconds` in coarse ticks, rounded up, at most [`TIMEOUT_MAX`].
pub const fn ticks(seconds: u32, hz: u32) -> u16 {
    let ticks = (seconds as u64 * hz as u64).div_ceil(1 << TICK_SHIFT);
    #[expect(clippy::cast_possible_truncation, reason = "compared just before")]
    if ticks > TIMEOUT_MAX as u64 { TIMEOUT_MAX } else { ticks as u16 }
}

/// Ticks from `last_seen` to `now`; zero where `last_seen` is a little ahead.
#[inline(always)]
pub const fn age(last_seen: u16, now: u16) -> u16 {
    let age = now.wrapping_sub(last_seen);
    if age > AGE_MAX { 0 } else { age }
}

/// Value of `table_counters`, one copy a CPU: what became of newcomers to the connection table, and whom they displaced.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableCounters {
    /// Connections and templates that were entered.
    pub inserted: u64,
    /// Slots taken whose time had run out.
    pub reclaimed: u64,
    /// Half-open connections displaced by a newcomer.
    pub evicted_half_open: u64,
    /// Closing connections displaced.
    pub evicted_closing: u64,
    /// Connections established by one packet only, displaced.
    pub evicted_established: u64,
    /// Newcomers that found no slot, and went to a server chosen by hash or (with `nat`) were dropped.
    pub refused: u64,
    /// Newcomers that lost a race for a slot twice.
    pub lost_races: u64,
}

const _: () = assert!(size_of::<TableCounters>() == 56);

impl core::ops::AddAssign for TableCounters {
    fn add_assign(&mut self, other: Self) {
        let Self { inserted, reclaimed, evicted_half_open, evicted_closing, evicted_established, refused, lost_races } =
            other;
        self.inserted += inserted;
        self.reclaimed += reclaimed;
        self.evicted_half_open += evicted_half_open;
        self.evicted_closing += evicted_closing;
        self.evicted_established += evicted_established;
        self.refused += refused;
        self.lost_races += lost_races;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_million_connections_take_267_megabytes() {
        // 10,000,000 / 0.6 / 8 buckets of 128 bytes
        assert_eq!(buckets_for(10_000_000), 2_083_334);
        assert_eq!(buckets_for(10_000_000) as usize * size_of::<Bucket>(), 266_666_752);
    }

    #[test]
    fn fifteen_minutes_at_250_hz_are_879_ticks() {
        // 900 s * 250 / 256 = 878.9
        assert_eq!(Timeouts::ipvs_defaults(250).of(State::ESTABLISHED), 879);
        // 10 s * 1000 / 256 = 39.06
        assert_eq!(Timeouts::ipvs_defaults(1000).of(State::CLOSED), 40);
    }

    #[test]
    fn a_day_at_1000_hz_is_cut_to_the_longest_timeout() {
        assert_eq!(ticks(86_400, 1000), TIMEOUT_MAX);
    }

    #[test]
    fn an_age_counts_across_the_wrap_and_a_later_tick_is_none() {
        assert_eq!(age(100, 979), 879);
        assert_eq!(age(u16::MAX, 4), 5);
        assert_eq!(age(101, 100), 0);
    }

    #[test]
    fn the_word_of_a_slot_holds_what_was_put_in() {
        let meta = Meta::new(0x1234, State::SETTLING, 0x56, 0x789a, 0xbcde);
        assert_eq!((meta.real_server(), meta.state(), meta.generation()), (0x1234, 0x40, 0x56));
        assert_eq!((meta.last_seen(), meta.client_hop()), (0x789a, 0xbcde));
        assert_eq!(meta.moved(State::ESTABLISHED, 7), Meta::new(0x1234, 0x50, 0x56, 7, 0xbcde));
        assert_eq!(meta.led_back_by(7), Meta::new(0x1234, 0x40, 0x56, 0x789a, 7));
        let slot =
            Slot { key: 1, real_server: 0x1234, state: 0x40, generation: 0x56, last_seen: 0x789a, client_hop: 0xbcde };
        assert_eq!(Meta::from(slot), meta);
        assert_eq!(Meta::LOCKED.state(), State::LOCKED);
    }
}
