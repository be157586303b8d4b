//! Bodies that every server makes alike, and a digest to compare what arrived with what was sent.

use std::io::{self, Read};
use std::sync::LazyLock;

/// A prime, so that the repetition never falls together with packets or buffers.
const PERIOD: usize = 65_521;

static BLOCK: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x6576_656e_6b65_656c_u64;
    let mut block = Vec::with_capacity(PERIOD + 8);
    while block.len() < PERIOD {
        block.extend_from_slice(&splitmix64(&mut state).to_le_bytes());
    }
    block.truncate(PERIOD);
    block
});

/// FNV-1a, 64 bits: finds any damage a network does; it is no defence against an adversary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// Adds everything a reader has; returns how many bytes that was.
    pub fn update_from(&mut self, mut reader: impl Read) -> io::Result<u64> {
        let mut buffer = vec![0; 64 * 1024];
        let mut total = 0;
        loop {
            let count = reader.read(&mut buffer)?;
            let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { return Ok(total) };
            self.update(bytes);
            total += bytes.len() as u64;
        }
    }

    /// Sixteen hexadecimal digits.
    pub fn hex(self) -> String {
        format!("{:016x}", self.0)
    }
}

/// The digest of `bytes`.
pub fn digest(bytes: &[u8]) -> String {
    let mut digest = Digest::default();
    digest.update(bytes);
    digest.hex()
}

/// The body of `GET /file/<length>`, the same on every server.
pub fn file_body(length: u64) -> FileBody {
    FileBody { position: 0, left: length }
}

/// Reads as the body of a file; takes no memory of its length.
#[derive(Clone, Debug)]
pub struct FileBody {
    position: usize,
    left: u64,
}

impl FileBody {
    /// The digest of what is left to read.
    pub fn digest(self) -> String {
        let mut digest = Digest::default();
        // Reading from memory has no error.
        drop(digest.update_from(self));
        digest.hex()
    }
}

impl Read for FileBody {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let block = BLOCK.get(self.position..).unwrap_or_default();
        let limit = usize::try_from(self.left).unwrap_or(usize::MAX).min(block.len());
        let count = block.get(..limit).unwrap_or_default().read(buffer)?;
        self.position = (self.position + count) % PERIOD;
        self.left -= count as u64;
        Ok(count)
    }
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Test vectors of the FNV reference code.
    #[test]
    fn digest_is_fnv1a() {
        assert_eq!(digest(b""), "cbf29ce484222325");
        assert_eq!(digest(b"a"), "af63dc4c8601ec8c");
        assert_eq!(digest(b"foobar"), "85944171f73967e8");
    }

    #[test]
    fn a_body_has_its_length_and_repeats_after_the_period() {
        let mut body = Vec::new();
        assert_eq!(file_body(200_000).read_to_end(&mut body).unwrap(), 200_000);
        assert_eq!(body[..1000], body[PERIOD..PERIOD + 1000]);
        assert_ne!(body[..1000], body[1000..2000]);
        assert_eq!(file_body(200_000).digest(), digest(&body));
        assert_eq!(file_body(0).digest(), digest(b""));
    }
}
