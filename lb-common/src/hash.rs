//! Keys and hashes on which both sides agree: the packet path computes them for each packet, user space for its tables.
//!
//! What chooses a real server (`sh`, `dh`, `mh`) has no secret, so that two directors agree, also across restarts. What
//! chooses a place in the connection table has one, so that nobody outside can fill a bucket on purpose.

use crate::net::{Address, Port, Protocol};

/// The secret of the connection table, drawn when the program is loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Secret {
    /// Two random words.
    pub words: [u64; 2],
}

const MULTIPLIER: u64 = 0xd6e8_feb8_6659_fd93;

/// Spreads every bit of `word` over all others.
#[inline(always)]
pub const fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 32)).wrapping_mul(MULTIPLIER);
    let word = (word ^ (word >> 32)).wrapping_mul(MULTIPLIER);
    word ^ (word >> 32)
}

/// The key of an IPv4 client's connection to virtual server `service` of a fixed port: exact, no two connections share it.
///
/// `client` is the address as it lies in memory. The client's network with port 0 is the key of its persistence template.
#[inline(always)]
pub const fn exact_key(client: u32, client_port: Port, service: u16) -> u64 {
    client as u64 | (client_port.number() as u64) << 32 | (service as u64) << 48
}

/// The key of all other connections: SipHash-1-3 of client, ports and virtual server under the table's secret.
///
/// Two of n live connections share one with probability n²/2^65, one in 350,000 at ten million.
#[inline(always)]
pub const fn fingerprint(client: [u64; 2], client_port: Port, vip_port: Port, service: u16, secret: &Secret) -> u64 {
    let ports = client_port.number() as u64 | (vip_port.number() as u64) << 16 | (service as u64) << 32;
    let [a, b] = client;
    let state = SipState::new(secret).absorb(a).absorb(b).absorb(ports);
    state.absorb(24 << 56).finish()
}

/// The two candidate buckets of `key` in a table of `buckets` buckets.
#[inline(always)]
pub const fn buckets(key: u64, buckets: u32, secret: &Secret) -> (u32, u32) {
    let [first, _] = secret.words;
    let hash = mix(key ^ first);
    let one = ((hash & 0xffff_ffff) * buckets as u64) >> 32;
    let two = ((hash >> 32) * buckets as u64) >> 32;
    (one as u32, two as u32)
}

/// The hash of an address, and of a port where that counts too, by which `sh`, `dh` and `mh` choose.
///
/// Without a secret: it is the same on every director. `port` is 0 where only the address counts.
#[inline(always)]
pub const fn scheduling(address: [u64; 2], port: u16) -> u64 {
    let [a, b] = address;
    mix(a ^ mix(b ^ mix(port as u64 ^ MULTIPLIER)))
}

/// The `turn`-th alternative to a hash of [`scheduling`] whose real server takes no new connection.
#[inline(always)]
pub const fn again(hash: u64, turn: u32) -> u64 {
    mix(hash ^ (turn as u64) << 48)
}

/// The hash of a flow that spreads tunnelled packets over equal paths and receive queues: by the client's address, its port in
/// the low half of `ports`, and the one that it addressed in the high half.
#[inline(always)]
pub const fn flow(client: [u64; 2], ports: u32) -> u32 {
    let [a, b] = client;
    #[expect(clippy::cast_possible_truncation, reason = "half of the hash is enough")]
    {
        mix((a ^ ports as u64).wrapping_mul(MULTIPLIER) ^ b) as u32
    }
}

/// What an entry of `service_index` or `reply_index` is compared with: exact for IPv4, a hash for IPv6, never zero.
#[inline(always)]
pub fn index_key(address: &Address, port: Port, protocol: Protocol) -> u64 {
    address_key(address, u64::from(port.number()) << 32 | (protocol as u64) << 48)
}

/// What the entry of `service_index` is compared with that says of an address that it is a VIP: of no port and no protocol.
#[inline(always)]
pub fn vip_key(address: &Address) -> u64 {
    address_key(address, 0)
}

#[inline(always)]
fn address_key(address: &Address, rest: u64) -> u64 {
    if address.is_ipv4() {
        u64::from(address.words()[3]) | rest | 1 << 56
    } else {
        // Whoever finds an entry compares the address too, so this need not be more than quick.
        let [a, b] = address.halves();
        let first = (a ^ rest).wrapping_mul(MULTIPLIER);
        let both = (first ^ (first >> 32) ^ b).wrapping_mul(MULTIPLIER);
        (both ^ (both >> 32)) | 1 << 63
    }
}

/// The bucket of a key in an index of `mask` + 1 buckets, a power of two up to 2^24, under a seed that user space has sought.
///
/// One multiplication spreads well enough for that: a seed under which a bucket overflows is not taken.
#[inline(always)]
pub const fn index_bucket(key: u64, seed: u32, mask: u32) -> u32 {
    ((key ^ seed as u64).wrapping_mul(MULTIPLIER) >> 40) as u32 & mask
}

/// SipHash's state (Aumasson and Bernstein, 2012), with one round a word and three at the end.
#[derive(Clone, Copy)]
struct SipState([u64; 4]);

impl SipState {
    #[inline(always)]
    const fn new(secret: &Secret) -> Self {
        let [k0, k1] = secret.words;
        Self([
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ])
    }

    #[inline(always)]
    const fn round(self) -> Self {
        let Self([a, b, c, d]) = self;
        let a = a.wrapping_add(b);
        let b = b.rotate_left(13) ^ a;
        let a = a.rotate_left(32);
        let c = c.wrapping_add(d);
        let d = d.rotate_left(16) ^ c;
        let a = a.wrapping_add(d);
        let d = d.rotate_left(21) ^ a;
        let c = c.wrapping_add(b);
        let b = b.rotate_left(17) ^ c;
        let c = c.rotate_left(32);
        Self([a, b, c, d])
    }

    #[inline(always)]
    const fn absorb(self, word: u64) -> Self {
        let Self([a, b, c, d]) = self;
        let Self([a, b, c, d]) = Self([a, b, c, d ^ word]).round();
        Self([a ^ word, b, c, d])
    }

    #[inline(always)]
    const fn finish(self) -> u64 {
        let Self([a, b, c, d]) = self;
        let Self([a, b, c, d]) = Self([a, b, c ^ 0xff, d]).round().round().round();
        a ^ b ^ c ^ d
    }
}

#[cfg(test)]
mod tests {
    use core::hash::Hasher as _;
    use core::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_fingerprint_is_siphash_1_3(client: [u64; 2], ports: [u16; 3], words: [u64; 2]) {
            let mut reference = siphasher::sip::SipHasher13::new_with_keys(words[0], words[1]);
            reference.write(&client[0].to_le_bytes());
            reference.write(&client[1].to_le_bytes());
            let [client_port, vip_port, service] = ports;
            reference.write(&client_port.to_le_bytes());
            reference.write(&vip_port.to_le_bytes());
            reference.write(&service.to_le_bytes());
            reference.write(&[0, 0]);
            let ours = fingerprint(client, Port::new(client_port), Port::new(vip_port), service, &Secret { words });
            prop_assert_eq!(ours, reference.finish());
        }

        #[test]
        fn candidate_buckets_are_in_the_table(key: u64, words: [u64; 2], length in 1_u32..) {
            let (one, two) = buckets(key, length, &Secret { words });
            prop_assert!(one < length && two < length);
        }
    }

    #[test]
    fn neighbouring_keys_spread_evenly() {
        let secret = Secret { words: [1, 2] };
        let mut counts = [0_u32; 64];
        for port in 0..64_000_u16 {
            let (one, _) = buckets(exact_key(0x0102_000a, Port::new(port), 3), 64, &secret);
            counts[one as usize] += 1;
        }
        // 1000 each; six standard deviations are 190.
        assert!(counts.iter().all(|count| (810..1190).contains(count)), "{counts:?}");
    }

    #[test]
    fn index_keys_of_both_families_differ_and_are_never_zero() {
        let address = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
        let key = |text, port, protocol| index_key(&address(text), Port::new(port), protocol);
        let keys = [
            key("0.0.0.0", 0, Protocol::Tcp),
            key("::", 0, Protocol::Tcp),
            key("::", 0, Protocol::Udp),
            key("10.0.0.1", 80, Protocol::Tcp),
            key("10.0.0.1", 80, Protocol::Udp),
            key("10.0.0.1", 81, Protocol::Tcp),
            key("fd00::1", 80, Protocol::Tcp),
            key("fd00::2", 80, Protocol::Tcp),
            vip_key(&address("0.0.0.0")),
            vip_key(&address("10.0.0.1")),
            vip_key(&address("::")),
            vip_key(&address("fd00::1")),
        ];
        for (at, one) in keys.iter().enumerate() {
            assert_ne!(*one, 0);
            assert!(keys[..at].iter().all(|other| other != one));
        }
    }

    #[test]
    fn what_chooses_a_server_is_the_same_everywhere() {
        // Written down once; a change here moves every client of sh, dh and mh when two versions run side by side.
        assert_eq!(scheduling([0, 0xffff_0000], 0), 0x879e_91d6_cd3f_4d22);
    }
}
