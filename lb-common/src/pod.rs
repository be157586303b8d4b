//! `aya::Pod` for the map types: user space may copy them to and from the kernel byte for byte.
//!
//! The enums among their fields hold only what this code wrote: a daemon reads maps that it has created itself, and those of
//! an earlier one of the same [`crate::ABI_VERSION`] once their numbers have been looked at as numbers.

#![expect(unsafe_code, reason = "aya::Pod is an unsafe trait")]

use crate::bench::BenchConfig;
use crate::connection::{Bucket, TableCounters, Timeouts, TupleBucket};
use crate::counters::Counters;
use crate::fragment::{FragmentEntry, FragmentKey};
use crate::hash::Secret;
use crate::interface::InterfaceEntry;
use crate::net::Address;
use crate::origin::TableOrigin;
use crate::prefix::PrefixLine;
use crate::real::{ClientHop, CountChunk, LoadChunk, RealServerEntry};
use crate::service::{IndexBucket, Lookups, RingChunk, ServiceKey, VirtualServerEntry};

// SAFETY: repr(C), Copy, without padding (asserted by their sizes) and without references.
unsafe impl aya::Pod for Address {}
// SAFETY: as above.
unsafe impl aya::Pod for BenchConfig {}
// SAFETY: as above.
unsafe impl aya::Pod for Bucket {}
// SAFETY: as above.
unsafe impl aya::Pod for ClientHop {}
// SAFETY: as above.
unsafe impl aya::Pod for CountChunk {}
// SAFETY: as above.
unsafe impl aya::Pod for Counters {}
// SAFETY: as above.
unsafe impl aya::Pod for FragmentEntry {}
// SAFETY: as above.
unsafe impl aya::Pod for FragmentKey {}
// SAFETY: as above.
unsafe impl aya::Pod for IndexBucket {}
// SAFETY: as above.
unsafe impl aya::Pod for InterfaceEntry {}
// SAFETY: as above.
unsafe impl aya::Pod for LoadChunk {}
// SAFETY: as above.
unsafe impl aya::Pod for Lookups {}
// SAFETY: as above.
unsafe impl aya::Pod for PrefixLine {}
// SAFETY: as above.
unsafe impl aya::Pod for RealServerEntry {}
// SAFETY: as above.
unsafe impl aya::Pod for RingChunk {}
// SAFETY: as above.
unsafe impl aya::Pod for Secret {}
// SAFETY: as above.
unsafe impl aya::Pod for ServiceKey {}
// SAFETY: as above.
unsafe impl aya::Pod for TableCounters {}
// SAFETY: as above.
unsafe impl aya::Pod for TableOrigin {}
// SAFETY: as above.
unsafe impl aya::Pod for Timeouts {}
// SAFETY: as above.
unsafe impl aya::Pod for TupleBucket {}
// SAFETY: as above.
unsafe impl aya::Pod for VirtualServerEntry {}
