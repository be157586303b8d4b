//! The checksum of SCTP packets: CRC32c, RFC 9260 appendix A.

/// The polynomial of Castagnoli, its bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// What four bits do to the remainder.
///
/// A table, because LLVM makes branches of a loop over bits, which the verifier follows both ways each time.
static NIBBLES: [u32; 16] = nibbles();

const fn nibbles() -> [u32; 16] {
    let mut table = [0; 16];
    let mut nibble = 0_u32;
    while nibble < 16 {
        let (mut remainder, mut bit) = (nibble, 0);
        while bit < 4 {
            remainder = remainder >> 1 ^ if remainder & 1 == 0 { 0 } else { POLYNOMIAL };
            bit += 1;
        }
        #[expect(clippy::indexing_slicing, reason = "below 16")]
        {
            table[nibble as usize] = remainder;
        }
        nibble += 1;
    }
    table
}

/// The checksum of a packet, given as the words that lie in memory, of which the checksum's own is zero; to be stored as it is.
///
/// Meant for the few bytes of an answer.
#[inline(always)]
pub fn of_words<const WORDS: usize>(words: [u32; WORDS]) -> u32 {
    let mut remainder = u32::MAX;
    for word in words {
        remainder ^= u32::from_le(word);
        for _ in 0..8 {
            #[expect(clippy::indexing_slicing, reason = "the index is masked")]
            let change = NIBBLES[(remainder & 15) as usize];
            remainder = remainder >> 4 ^ change;
        }
    }
    (!remainder).to_le()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720 §B.4.
    #[test]
    fn the_examples_of_iscsi() {
        assert_eq!(of_words([0; 8]).to_ne_bytes(), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(of_words([u32::MAX; 8]).to_ne_bytes(), [0x43, 0xab, 0xa8, 0x62]);
        let rising: [u32; 8] = std::array::from_fn(|word| {
            let first = u8::try_from(word * 4).unwrap();
            u32::from_ne_bytes([first, first + 1, first + 2, first + 3])
        });
        assert_eq!(of_words(rising).to_ne_bytes(), [0x4e, 0x79, 0xdd, 0x46]);
    }
}
