//! The daemon itself, in namespaces, in native mode: what it serves, and what it leaves behind.

#![expect(clippy::indexing_slicing, reason = "a test may panic, and serde_json's indexing does not")]

mod connections;
mod director;
mod lifecycle;
mod nexthops;
mod refusals;
mod serving;
mod tools;
