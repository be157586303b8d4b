//! What `cargo xtask bench program` tells its program: which packets to make, and what shall then run on them.
//!
//! Neither the daemon nor what it loads uses any of it.

/// Bytes of every frame: Ethernet and IPv6 header, a TCP header and four bytes, or as many with IPv4.
pub const FRAME_LENGTH: usize = 78;

/// Bytes before [`BenchConfig::packet`]: the Ethernet header.
pub const PACKET_OFFSET: usize = 14;

/// Words of [`BenchConfig::packet`].
pub const PACKET_WORDS: usize = 16;

const _: () = assert!(PACKET_OFFSET + PACKET_WORDS * 4 == FRAME_LENGTH);

/// Clients with addresses of their own; further flows repeat the addresses with other ports.
pub const CLIENTS: u32 = 1 << 20;

/// The port of the first [`CLIENTS`] flows.
pub const FIRST_PORT: u16 = 1024;

/// In which order the flows send.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// From the first to the last, and again.
    Sequential = 0,
    /// Each packet is of any flow, uniformly.
    Random = 1,
}

/// Value of `bench_config`, element 0.
///
/// Words of the frame are as the machine reads them from memory.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchConfig {
    /// Both Ethernet addresses.
    pub ethernet: [u32; 3],
    /// The EtherType.
    pub ethertype: u16,
    /// Always zero.
    pub reserved: u16,
    /// The packet of flow 0, from the IP header on.
    pub packet: [u32; PACKET_WORDS],
    /// Which word of the packet is the client's IPv4 address, or the word of its IPv6 address in which clients differ.
    pub address_word: u32,
    /// Which word of the packet has the two ports.
    pub ports_word: u32,
    /// That word.
    pub ports: u32,
    /// Bits by which the client's port is shifted in that word: 0 where the client is the source, else 16.
    pub port_shift: u32,
    /// The address word of flow 0, in host order.
    pub first_address: u32,
    /// Number of flows, at least 1.
    pub flows: u32,
    /// Which of them sends next.
    pub order: Order,
    /// Index into `bench_programs` of what runs on the packet.
    pub program: u32,
    /// With [`Order::Sequential`] the next flow's index, with [`Order::Random`] the state of [`next_random`]; kept by the program.
    pub next: u64,
    /// Bits by which neighbouring clients' address words lie apart.
    pub address_shift: u32,
    /// Always zero.
    pub padding: u32,
}

const _: () = assert!(size_of::<BenchConfig>() == 128);

/// The client of flow `index`: the word of its address that differs, in host order, and its port.
#[inline(always)]
pub const fn client(first_address: u32, shift: u32, index: u32) -> (u32, u16) {
    let address = first_address.wrapping_add((index & (CLIENTS - 1)) << (shift & 31));
    #[expect(clippy::cast_possible_truncation, reason = "at most 4095")]
    let turn = (index >> CLIENTS.trailing_zeros()) as u16;
    (address, FIRST_PORT + turn)
}

/// The next state of a linear congruential generator (Knuth's constants for 64 bits).
#[inline(always)]
pub const fn next_random(state: u64) -> u64 {
    state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
}

/// A number below `bound` by the upper half of a state, the half that is random.
#[inline(always)]
pub const fn below(state: u64, bound: u32) -> u32 {
    (((state >> 32) * bound as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_past_a_million_differ_by_their_port() {
        let first = 0x6440_0000;
        assert_eq!(client(first, 0, 0), (0x6440_0000, 1024));
        assert_eq!(client(first, 0, 0x000f_ffff), (0x644f_ffff, 1024));
        assert_eq!(client(first, 0, 0x0010_0000), (0x6440_0000, 1025));
        assert_eq!(client(first, 7, 3), (0x6440_0180, 1024));
        // 10,000,000 = 9 * 1,048,576 + 562,816
        assert_eq!(client(first, 0, 9_999_999), (0x6440_0000 + 562_815, 1033));
    }

    #[test]
    fn any_flow_is_as_likely_as_any_other() {
        let mut counts = [0_u32; 10];
        let mut state = 1;
        for _ in 0..100_000 {
            state = next_random(state);
            counts[below(state, 10) as usize] += 1;
        }
        // 10,000 each; six standard deviations are 569.
        assert!(counts.iter().all(|count| (9_431..10_569).contains(count)), "{counts:?}");
        assert_eq!(below(u64::MAX, 10), 9);
        assert_eq!(below(u64::MAX, 1), 0);
    }
}
