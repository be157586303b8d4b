//! Incremental update of Internet checksums, RFC 1624 equation 3: HC' = ~(~HC + ~m + m').
//!
//! All words are taken as they lie in memory: one's complement addition does not care for byte order (RFC 1071 §2 (B)).

/// What a set of replaced words does to a checksum that covers them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u64);

impl Delta {
    /// No change.
    pub const NONE: Self = Self(0);

    /// A 16-bit word `old` became `new`.
    #[inline(always)]
    #[must_use]
    pub const fn replace16(self, old: u16, new: u16) -> Self {
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// A 32-bit word `old` became `new`.
    #[inline(always)]
    #[must_use]
    pub const fn replace32(self, old: u32, new: u32) -> Self {
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// The 16 octets `old` became `new`.
    #[inline(always)]
    #[must_use]
    pub const fn replace128(self, old: [u32; 4], new: [u32; 4]) -> Self {
        self.replace32(old[0], new[0]).replace32(old[1], new[1]).replace32(old[2], new[2]).replace32(old[3], new[3])
    }

    /// The change that [`Delta::folded`] gave `word` for.
    #[inline(always)]
    #[must_use]
    pub const fn from_folded(word: u32) -> Self {
        Self(word as u64)
    }

    /// The change as a number of at most 16 bits, to be kept; zero only for no change.
    #[inline(always)]
    pub const fn folded(self) -> u32 {
        fold(self.0) as u32
    }

    /// The change back: what undoes this one.
    #[inline(always)]
    #[must_use]
    pub const fn inverse(self) -> Self {
        // Not zero, of which one's complement has two: this is the one that a sum of complements yields.
        Self(2 * 0xffff - fold(self.0) as u64)
    }

    /// Both changes.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The checksum field that held `check`, after the replacement.
    #[inline(always)]
    pub const fn apply(self, check: u16) -> u16 {
        !fold(self.0 + (!check) as u64)
    }

    /// As [`Delta::apply`], for UDP: zero means "no checksum" and stays so, and a computed zero is sent as all ones (RFC 768).
    #[inline(always)]
    pub const fn apply_udp(self, check: u16) -> u16 {
        if check == 0 {
            return 0;
        }
        match self.apply(check) {
            0 => u16::MAX,
            check => check,
        }
    }
}

/// The checksum of an IPv4 header of 20 bytes whose checksum field is zero, given as five words of memory.
#[inline(always)]
pub const fn ipv4_header(words: [u32; 5]) -> u16 {
    let sum = words[0] as u64 + words[1] as u64 + words[2] as u64 + words[3] as u64 + words[4] as u64;
    !fold(sum)
}

/// The checksum of words whose sum is `sum`, at most 2^16 words of 32 bits.
#[inline(always)]
pub const fn of_sum(sum: u64) -> u16 {
    !fold(sum)
}

/// Folds a sum of at most 2^16 words of 32 bits to 16 bits, end-around carry included.
#[inline(always)]
const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    #[expect(clippy::cast_possible_truncation, reason = "three folds leave 16 bits")]
    {
        sum as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The plain RFC 1071 sum over bytes, written independently of [`fold`].
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum: u32 = 0;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            if sum > 0xffff {
                sum = (sum & 0xffff) + 1;
            }
        }
        !u16::try_from(sum).unwrap()
    }

    #[test]
    fn the_example_of_rfc_1624_section_4() {
        // 0xDD2F with 0x5555 becoming 0x3285 is 0x0000.
        assert_eq!(Delta::NONE.replace16(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }

    #[test]
    fn udp_without_checksum_stays_without() {
        assert_eq!(Delta::NONE.replace16(1, 2).apply_udp(0), 0);
    }

    #[test]
    fn udp_checksum_of_zero_is_sent_as_all_ones() {
        assert_eq!(Delta::NONE.replace16(0x5555, 0x3285).apply_udp(0xdd2f), 0xffff);
    }

    proptest! {
        #[test]
        fn incremental_equals_full(mut data: [u8; 40], new: [u8; 16], port: u16) {
            let words = |d: &[u8]| -> [u32; 4] {
                core::array::from_fn(|i| u32::from_ne_bytes(d[i * 4..i * 4 + 4].try_into().unwrap()))
            };
            // A header of all zero words has two valid checksums; RFC 1624 keeps the one that was there.
            data[39] |= 1;
            let before = reference(&data);
            let delta = Delta::NONE
                .replace128(words(&data[4..20]), words(&new))
                .replace16(u16::from_ne_bytes([data[20], data[21]]), port);
            data[4..20].copy_from_slice(&new);
            data[20..22].copy_from_slice(&port.to_ne_bytes());
            prop_assert_eq!(delta.apply(before), reference(&data));
        }

        #[test]
        fn a_kept_change_and_its_inverse_are_the_changes_themselves(old: [u32; 4], new: [u32; 4], check: u16) {
            let there = Delta::NONE.replace128(old, new);
            let back = Delta::NONE.replace128(new, old);
            prop_assert_eq!(Delta::from_folded(there.folded()).apply(check), there.apply(check));
            prop_assert_eq!(there.inverse().apply(check), back.apply(check));
        }

        #[test]
        fn a_header_checksum_verifies(mut header: [u8; 20]) {
            header[10] = 0;
            header[11] = 0;
            let words = core::array::from_fn(|i| u32::from_ne_bytes(header[i * 4..i * 4 + 4].try_into().unwrap()));
            let check = ipv4_header(words);
            prop_assert_eq!(check, reference(&header));
        }
    }
}
