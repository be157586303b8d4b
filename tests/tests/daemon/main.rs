//! The daemon itself, in namespaces, in native mode: what it serves, and what it leaves behind.

#![expect(clippy::indexing_slicing, reason = "a test may panic, and serde_json's indexing does not")]

mod access;
mod access_restart;
mod adoption;
mod another_build;
mod connections;
mod devices;
mod direct;
mod director;
mod drain;
mod interfaces;
mod large;
mod lifecycle;
mod limits;
mod nexthops;
mod operated;
mod path_mtu;
mod persistence;
mod ports;
mod refusals;
mod reload;
mod restart;
mod schedulers;
mod sctp;
mod serving;
mod tools;
mod tunnels;
mod unserved;
