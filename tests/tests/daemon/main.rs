//! The daemon itself, in namespaces, in native mode: what it serves, and what it leaves behind.

mod director;
mod lifecycle;
mod nexthops;
mod refusals;
mod serving;
mod tools;
