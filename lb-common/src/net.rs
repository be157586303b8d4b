//! Addresses, ports and protocols in the form in which they lie in the maps.
//!
//! No parsing of packets: `lb-ebpf` reads the wire, user space reads configuration.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytemuck::must_cast;

/// An IPv4 or IPv6 address: sixteen octets in network order, IPv4 as `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2).
///
/// `bpftool map dump` prints the octets in decimal, so the last four of an IPv4 address read as people write them.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// The octets, most significant first.
    pub octets: [u8; 16],
}

const _: () = assert!(size_of::<Address>() == 16);

/// The third 32-bit word of an IPv4-mapped address, as the machine reads it from memory.
const MAPPED_PREFIX: u32 = 0xffff_u32.to_be();

impl Address {
    /// `::`, where no address applies.
    pub const UNSPECIFIED: Self = Self { octets: [0; 16] };

    /// The IPv4 address whose four octets are the bytes of `word` in memory order.
    #[inline(always)]
    pub fn from_ipv4_word(word: u32) -> Self {
        Self::from_words([0, 0, MAPPED_PREFIX, word])
    }

    /// The address whose octets are the bytes of `words` in memory order.
    ///
    /// A cast and not a loop: LLVM would move the octets one by one, and spill most of them.
    #[inline(always)]
    pub fn from_words(words: [u32; 4]) -> Self {
        Self { octets: must_cast(words) }
    }

    /// The octets as four 32-bit words in memory order; the last is the IPv4 address of a mapped one.
    #[inline(always)]
    pub fn words(&self) -> [u32; 4] {
        must_cast(self.octets)
    }

    /// The octets as two 64-bit words in memory order.
    #[inline(always)]
    pub fn halves(&self) -> [u64; 2] {
        let [a, b, c, d] = self.words();
        [u64::from(a) | u64::from(b) << 32, u64::from(c) | u64::from(d) << 32]
    }

    /// Whether this is an IPv4 address in mapped form.
    #[inline(always)]
    pub fn is_ipv4(&self) -> bool {
        matches!(self.words(), [0, 0, MAPPED_PREFIX, _])
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        let octets = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        Self { octets }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        let v6 = Ipv6Addr::from(address.octets);
        match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6(v6),
        }
    }
}

impl From<Ipv4Addr> for Address {
    fn from(address: Ipv4Addr) -> Self {
        IpAddr::V4(address).into()
    }
}

/// A TCP or UDP port, in host order so that `bpftool` prints 80 as 80.
///
/// Only [`Port::from_wire`] and [`Port::to_wire`] touch network order; nothing else converts.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    number: u16,
}

impl Port {
    /// The port numbered `number`, 0..=65535.
    pub const fn new(number: u16) -> Self {
        Self { number }
    }

    /// The port whose two header bytes read as `raw` from memory.
    #[inline(always)]
    pub const fn from_wire(raw: u16) -> Self {
        Self { number: u16::from_be(raw) }
    }

    /// The two header bytes, as a word to store to memory.
    #[inline(always)]
    pub const fn to_wire(self) -> u16 {
        self.number.to_be()
    }

    /// The port's number, 0..=65535.
    pub const fn number(self) -> u16 {
        self.number
    }
}

/// A transport protocol that can be balanced, by its IANA number.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Transmission Control Protocol, RFC 9293.
    Tcp = 6,
    /// User Datagram Protocol, RFC 768.
    Udp = 17,
    /// Stream Control Transmission Protocol, RFC 9260. Its ports lie where TCP's and UDP's do.
    Sctp = 132,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The protocol with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.name() == name)
    }

    /// The protocol with this IANA number, `None` for those that are not balanced.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }

    /// The word of the configuration file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// An Ethernet address.
#[repr(C, align(2))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddress {
    /// The octets in the order of the wire.
    pub octets: [u8; 6],
}

const _: () = assert!(size_of::<MacAddress>() == 6);

impl MacAddress {
    /// All zero, where no address is known.
    pub const ZERO: Self = Self { octets: [0; 6] };

    /// The octets as three 16-bit words in memory order.
    #[inline(always)]
    pub fn words(&self) -> [u16; 3] {
        must_cast(self.octets)
    }

    /// The address whose octets are the bytes of `words` in memory order.
    #[inline(always)]
    pub fn from_words(words: [u16; 3]) -> Self {
        Self { octets: must_cast(words) }
    }
}

impl core::fmt::Display for MacAddress {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let [a, b, c, d, e, g] = self.octets;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_is_mapped_and_reads_back() {
        let address = Address::from(Ipv4Addr::new(10, 9, 0, 100));
        assert_eq!(address.octets, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 9, 0, 100]);
        assert_eq!(IpAddr::from(address), IpAddr::V4(Ipv4Addr::new(10, 9, 0, 100)));
        assert!(address.is_ipv4());
    }

    #[test]
    fn a_word_from_the_wire_is_the_same_address() {
        let word = u32::from_ne_bytes([10, 9, 0, 100]);
        assert_eq!(Address::from_ipv4_word(word), Address::from(Ipv4Addr::new(10, 9, 0, 100)));
    }

    #[test]
    fn words_and_octets_agree() {
        let v6: Address = "fd00::1:2:3".parse::<IpAddr>().unwrap().into();
        assert_eq!(Address::from_words(v6.words()), v6);
        assert!(!v6.is_ipv4());
    }

    #[test]
    fn port_eighty_is_bytes_zero_and_eighty() {
        assert_eq!(Port::new(80).to_wire().to_ne_bytes(), [0, 80]);
        assert_eq!(Port::from_wire(u16::from_ne_bytes([0x1f, 0x90])).number(), 8080);
    }

    #[test]
    fn protocols_have_their_numbers_and_names() {
        let numbers = Protocol::ALL.map(|protocol| protocol as u32);
        assert_eq!(numbers, [6, 17, 132]);
        for protocol in Protocol::ALL {
            assert_eq!(Protocol::from_number(u8::try_from(protocol as u32).unwrap()), Some(protocol));
            assert_eq!(Protocol::named(protocol.name()), Some(protocol));
        }
        assert_eq!((Protocol::from_number(1), Protocol::named("icmp")), (None, None));
    }

    #[test]
    fn mac_address_prints_as_operators_write_it() {
        let mac = MacAddress { octets: [0, 0, 0x5e, 0, 1, 51] };
        assert_eq!(mac.to_string(), "00:00:5e:00:01:33");
    }
}
