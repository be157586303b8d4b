//! Receive offloads that hand merged packets to XDP, or packets without their VLAN tags: switched off while the program is
//! attached, then put back.
//!
//! By the ethtool ioctl and the kernel's feature names, as `ethtool -k` shows them.

#![expect(unsafe_code, reason = "the ethtool ioctl has no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Large receive offload, by its kernel name: it breaks forwarding wherever it happens.
pub const LRO: &str = "rx-lro";

/// All features that merge packets before generic XDP sees them; in native mode only [`LRO`] comes before the program.
pub const GENERIC: [&str; 5] = [LRO, "rx-gro", "rx-gro-hw", "rx-gro-list", "rx-udp-gro-forwarding"];

/// What takes VLAN tags off before XDP sees the frame, 802.1Q and 802.1ad.
pub const UNTAGGING: [&str; 2] = ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"];

/// Which of `features` are on at `interface`.
///
/// # Errors
///
/// When there is no such interface, or it tells nothing.
pub fn active(interface: &str, features: &[&'static str]) -> io::Result<Vec<&'static str>> {
    let table = FeatureTable::read(interface)?;
    let words = table.words()?;
    Ok(features.iter().filter(|name| table.position(name).is_some_and(|bit| is_active(&words, bit))).copied().collect())
}

/// Switches `feature` on or off at `interface`.
///
/// # Errors
///
/// When the driver refuses, or the feature does not change although the call succeeds.
pub fn set(interface: &str, feature: &str, on: bool) -> io::Result<()> {
    let table = FeatureTable::read(interface)?;
    let bit = table.position(feature).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    table.write(bit, on)?;
    if is_active(&table.words()?, bit) == on { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
}

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
/// String set of the feature names (`ETH_SS_FEATURES`).
const STRING_SET_FEATURES: u32 = 4;
/// Bytes of a name (`ETH_GSTRING_LEN`).
const NAME_LENGTH: usize = 32;
/// Words that `struct ethtool_get_features_block` holds: available, requested, active, never changed.
const BLOCK_WORDS: usize = 4;

/// Feature names of an interface, in the order of their bits.
struct FeatureTable {
    interface: String,
    names: Vec<String>,
}

impl FeatureTable {
    fn read(interface: &str) -> io::Result<Self> {
        let count = string_count(interface)?;
        // struct ethtool_gstrings: cmd, string_set, len, then the strings.
        let mut buffer = vec![0_u32; 3 + count * NAME_LENGTH / 4];
        fill(&mut buffer, &[ETHTOOL_GSTRINGS, STRING_SET_FEATURES, u32::try_from(count).unwrap_or(0)]);
        ioctl(interface, &mut buffer)?;
        let bytes: Vec<u8> = buffer.iter().skip(3).flat_map(|word| word.to_ne_bytes()).collect();
        let names = bytes.chunks_exact(NAME_LENGTH).map(|name| {
            let text: Vec<u8> = name.iter().copied().take_while(|byte| *byte != 0).collect();
            String::from_utf8_lossy(&text).into_owned()
        });
        Ok(Self { interface: interface.to_owned(), names: names.collect() })
    }

    fn position(&self, feature: &str) -> Option<usize> {
        self.names.iter().position(|name| name == feature)
    }

    fn blocks(&self) -> usize {
        self.names.len().div_ceil(32)
    }

    /// The blocks of `struct ethtool_gfeatures`, flat.
    fn words(&self) -> io::Result<Vec<u32>> {
        let mut buffer = vec![0_u32; 2 + self.blocks() * BLOCK_WORDS];
        fill(&mut buffer, &[ETHTOOL_GFEATURES, u32::try_from(self.blocks()).unwrap_or(0)]);
        ioctl(&self.interface, &mut buffer)?;
        Ok(buffer.split_off(2))
    }

    fn write(&self, bit: usize, on: bool) -> io::Result<()> {
        // struct ethtool_sfeatures: cmd, size, then a valid and a requested word a block.
        let mut buffer = vec![0_u32; 2 + self.blocks() * 2];
        fill(&mut buffer, &[ETHTOOL_SFEATURES, u32::try_from(self.blocks()).unwrap_or(0)]);
        let mask = 1_u32 << (bit % 32);
        let block = 2 + bit / 32 * 2;
        if let Some([valid, requested]) = buffer.get_mut(block..block + 2) {
            *valid = mask;
            *requested = if on { mask } else { 0 };
        }
        ioctl(&self.interface, &mut buffer)
    }
}

fn is_active(words: &[u32], bit: usize) -> bool {
    words.get(bit / 32 * BLOCK_WORDS + 2).is_some_and(|word| word & (1 << (bit % 32)) != 0)
}

fn string_count(interface: &str) -> io::Result<usize> {
    // struct ethtool_sset_info: cmd, reserved, mask (64 bits), one count.
    let mut buffer = vec![0_u32; 5];
    fill(&mut buffer, &[ETHTOOL_GSSET_INFO, 0, 1 << STRING_SET_FEATURES]);
    ioctl(interface, &mut buffer)?;
    buffer.last().map_or(Ok(0), |count| usize::try_from(*count).map_err(io::Error::other))
}

fn fill(buffer: &mut [u32], words: &[u32]) {
    buffer.iter_mut().zip(words).for_each(|(slot, word)| *slot = *word);
}

/// `struct ifreq` with the data pointer that SIOCETHTOOL takes.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    data: *mut u32,
    padding: [u64; 2],
}

fn ioctl(interface: &str, buffer: &mut [u32]) -> io::Result<()> {
    let mut request = Request { name: [0; libc::IFNAMSIZ], data: buffer.as_mut_ptr(), padding: [0; 2] };
    let room = libc::IFNAMSIZ - 1;
    request.name.iter_mut().zip(interface.bytes().take(room)).for_each(|(slot, byte)| *slot = byte);
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: the request has the layout and size of struct ifreq, its pointer a buffer that lives through the call and is as
    // large as the command in its first word and the count beside it say.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
