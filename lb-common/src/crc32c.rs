//! The checksum of SCTP packets: CRC32c, RFC 9260 appendix A.

/// The polynomial of Castagnoli, its bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The checksum of a packet, given as the words that lie in memory, of which the checksum's own is zero; to be stored as it is.
///
/// A loop over bits: meant for the few bytes of an answer.
pub const fn of_words<const WORDS: usize>(words: &[u32; WORDS]) -> u32 {
    let mut crc = u32::MAX;
    let mut word = 0;
    while word < WORDS {
        #[expect(clippy::indexing_slicing, reason = "below the length")]
        {
            crc ^= u32::from_le(words[word]);
        }
        let mut bit = 0;
        while bit < 32 {
            crc = crc >> 1 ^ POLYNOMIAL & 0_u32.wrapping_sub(crc & 1);
            bit += 1;
        }
        word += 1;
    }
    (!crc).to_le()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720 §B.4.
    #[test]
    fn the_examples_of_iscsi() {
        assert_eq!(of_words(&[0; 8]).to_ne_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(of_words(&[u32::MAX; 8]).to_ne_bytes(), [0x43, 0xab, 0xa8, 0x62]);
        let rising: [u32; 8] = std::array::from_fn(|word| {
            let first = u8::try_from(word * 4).unwrap();
            u32::from_ne_bytes([first, first + 1, first + 2, first + 3])
        });
        assert_eq!(of_words(&rising).to_ne_bytes(), [0x4e, 0x79, 0xdd, 0x46]);
    }
}
