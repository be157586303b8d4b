//! The connection table seen from user space: the memory that the packet path works on, and what is done there for it.
//!
//! ```text
//! task ─► scanner ─► sweep   every slot once a round: connections whose time is over end
//!   │        ├─────► hops    each round: ways back to clients that no connection uses are freed
//!   │        ├─────► loads   each slice: is every load what its counts make of it?
//!   │        └─────► audit   each minute: do the counts agree with the table?
//!   └──── clock              the packet path's time
//! memory_maps                the tables, of a loaded program or from pins
//! connection                 slots as `evenkeel connections` prints them
//! words                      the tables, as atomic words; all of the above go through it
//! ```
//!
//! What packets do to slots and counters is the XDP program's. The rule that both keep: whoever takes a slot from a
//! connection, by a compare-and-swap of its word, takes that connection off the counters; nobody else does.

pub mod audit;
pub mod clock;
pub mod connection;
pub(super) mod denied;
pub mod hops;
pub mod loads;
pub mod memory_maps;
pub mod scanner;
pub mod sweep;
pub mod task;
pub mod words;

#[cfg(test)]
mod memory;
#[cfg(test)]
mod packet_path;
#[cfg(test)]
mod reading_tests;
#[cfg(test)]
mod tests;
