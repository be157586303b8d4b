//! What pinned maps were made for: what a later daemon must know to go on with them, and no other map tells.

use crate::hash::Secret;

/// Most maps that belong together.
pub const ORIGIN_MAPS: usize = 48;

/// Value of `table_origin`, element 0. User space writes it once, when it makes the maps, and only user space reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableOrigin {
    /// By which connections have found their buckets.
    pub secret: Secret,
    /// When the maps were made: seconds since the machine started, suspended or not. All counters count since then.
    pub made_at: u64,
    /// `xdp.connections_max` at that time.
    pub connections_max: u32,
    /// Always zero.
    pub reserved: u32,
    /// The kernel's ids of all maps that were made together, in no order; zero where there is none.
    pub maps: [u32; ORIGIN_MAPS],
}

const _: () = assert!(size_of::<TableOrigin>() == 32 + 4 * ORIGIN_MAPS);
