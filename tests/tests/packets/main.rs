//! Packets in, verdicts and packets out: the XDP programs, run by BPF_PROG_TEST_RUN on frames that these tests build.
//!
//! Every frame out is compared byte for byte with one that [`frame`] builds from scratch, checksums included; nothing
//! expected comes from the code under test. Nothing is attached, and each test has a network namespace of its own.

// `cfg(test)` stands at each module because clippy looks for it there, to allow what it allows in tests.
#[cfg(test)]
mod access;
#[cfg(test)]
mod bench;
#[cfg(test)]
mod bonds;
#[cfg(test)]
mod bursts;
#[cfg(test)]
mod choices;
#[cfg(test)]
mod connections;
#[cfg(test)]
mod counters;
#[cfg(test)]
mod decapsulation;
#[cfg(test)]
mod drops;
#[cfg(test)]
mod exchanges;
#[cfg(test)]
mod fill;
#[cfg(test)]
mod floods;
#[cfg(test)]
mod forwarding;
#[cfg(test)]
mod frame;
#[cfg(test)]
mod garbage;
#[cfg(test)]
mod headers;
#[cfg(test)]
mod headroom;
#[cfg(test)]
mod icmp;
#[cfg(test)]
mod model;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod own;
#[cfg(test)]
mod pruning;
#[cfg(test)]
mod quotation;
#[cfg(test)]
mod redirects;
#[cfg(test)]
mod replies;
#[cfg(test)]
mod routes;
#[cfg(test)]
mod scene;
#[cfg(test)]
mod scheduling;
#[cfg(test)]
mod sctp;
#[cfg(test)]
mod sctp_frame;
#[cfg(test)]
mod tables;
#[cfg(test)]
mod traces;
mod tunnels;
#[cfg(test)]
mod twin;
#[cfg(test)]
mod unavailable;
#[cfg(test)]
mod untouched;
#[cfg(test)]
mod variants;
