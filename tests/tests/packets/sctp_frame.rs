//! SCTP packets in words (RFC 9260 §3), their checksum computed from scratch.

/// Chunk types (RFC 9260 §3.2).
pub mod kind {
    pub const DATA: u8 = 0;
    pub const INIT: u8 = 1;
    pub const INIT_ACK: u8 = 2;
    pub const SACK: u8 = 3;
    pub const HEARTBEAT: u8 = 4;
    pub const ABORT: u8 = 6;
    pub const SHUTDOWN: u8 = 7;
    pub const SHUTDOWN_ACK: u8 = 8;
    pub const ERROR: u8 = 9;
    pub const COOKIE_ECHO: u8 = 10;
    pub const COOKIE_ACK: u8 = 11;
    pub const SHUTDOWN_COMPLETE: u8 = 14;
    /// Padding, RFC 4820.
    pub const PAD: u8 = 0x84;
}

/// The tag of every packet but those with INIT.
pub const TAG: u32 = 0x7a67_0001;
/// The tag that an INIT asks for.
pub const INITIATE_TAG: u32 = 0x1a6e_0002;

/// A chunk; its length is that of the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub kind: u8,
    pub flags: u8,
    pub value: Vec<u8>,
}

impl Chunk {
    /// One of this type as it mostly is: fixed parts filled with something, no more.
    pub fn new(kind: u8) -> Self {
        let value = match kind {
            // Tag, window, streams out and in, first sequence number.
            kind::INIT | kind::INIT_ACK => {
                [&INITIATE_TAG.to_be_bytes()[..], &[0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1]].concat()
            }
            kind::DATA => b"tsn.st.nprotdata?".to_vec(),
            kind::SACK => vec![0; 12],
            kind::HEARTBEAT => vec![0, 1, 0, 8, 1, 2, 3, 4],
            kind::SHUTDOWN => vec![0, 0, 0, 7],
            kind::ERROR => vec![0, 3, 0, 8, 0, 0, 0, 1],
            kind::COOKIE_ECHO => b"a cookie".to_vec(),
            _ => Vec::new(),
        };
        Self { kind, flags: 0, value }
    }

    /// The chunk with its padding.
    fn bytes(&self) -> Vec<u8> {
        let length = u16::try_from(4 + self.value.len()).expect("fits in a packet").to_be_bytes();
        let mut bytes = [&[self.kind, self.flags], &length[..], &self.value].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }
}

/// Chunks that say what `flags` say in TCP, or something else that a client may send.
pub fn saying(flags: u8) -> Vec<Chunk> {
    use super::frame::{ACK, FIN, PSH, RST, SYN};
    let chunks = |kinds: &[u8]| kinds.iter().map(|kind| Chunk::new(*kind)).collect();
    match flags {
        SYN => chunks(&[kind::INIT]),
        ACK => chunks(&[kind::COOKIE_ECHO]),
        f if f == ACK | PSH => chunks(&[kind::SACK, kind::DATA]),
        f if f == FIN | ACK => chunks(&[kind::SHUTDOWN]),
        RST => chunks(&[kind::ABORT]),
        f if f == RST | ACK => chunks(&[kind::COOKIE_ECHO, kind::ABORT]),
        f if f == SYN | ACK => chunks(&[kind::INIT_ACK]),
        0 => chunks(&[kind::HEARTBEAT]),
        PSH => chunks(&[kind::COOKIE_ACK]),
        FIN => chunks(&[kind::SHUTDOWN_ACK]),
        f if f == SYN | FIN => chunks(&[kind::ERROR]),
        f if f == SYN | RST => chunks(&[kind::SHUTDOWN_COMPLETE]),
        f if f == FIN | RST => chunks(&[kind::SACK, kind::SACK, kind::SHUTDOWN]),
        // Unknown, and an INIT where none belongs.
        _ => chunks(&[0xc1, kind::INIT]),
    }
}

/// The packet of these ports and chunks, and one of padding where there is a payload.
pub fn bytes(ports: [u16; 2], chunks: &[Chunk], payload: &[u8]) -> Vec<u8> {
    let is_init = chunks.first().is_some_and(|chunk| chunk.kind == kind::INIT);
    let tag = if is_init { 0 } else { TAG };
    let mut bytes = [ports[0].to_be_bytes(), ports[1].to_be_bytes()].concat();
    bytes.extend(tag.to_be_bytes());
    bytes.extend([0; 4]);
    chunks.iter().for_each(|chunk| bytes.extend(chunk.bytes()));
    if !payload.is_empty() {
        bytes.extend(Chunk { kind: kind::PAD, flags: 0, value: payload.to_vec() }.bytes());
    }
    let sum = checksum(&bytes);
    bytes[8..12].copy_from_slice(&sum);
    bytes
}

/// RFC 9260 appendix A, with the polynomial as it is written there: bits and result turned instead.
pub fn checksum(packet: &[u8]) -> [u8; 4] {
    let mut remainder = u32::MAX;
    for byte in packet {
        remainder ^= u32::from(byte.reverse_bits()) << 24;
        for _ in 0..8 {
            let is_over = remainder >> 31 == 1;
            remainder <<= 1;
            if is_over {
                remainder ^= 0x1edc_6f41;
            }
        }
    }
    (!remainder).reverse_bits().to_le_bytes()
}

/// RFC 3720 §B.4.
#[test]
fn the_checksum_of_iscsis_examples() {
    assert_eq!(checksum(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
    assert_eq!(checksum(&[0xff; 32]), [0x43, 0xab, 0xa8, 0x62]);
    let rising: Vec<u8> = (0..32).collect();
    assert_eq!(checksum(&rising), [0x4e, 0x79, 0xdd, 0x46]);
}
