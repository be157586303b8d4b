//! What is counted per virtual server and per real server.

/// Value of `vs_counters` and `rs_counters`, one copy a CPU.
///
/// Bytes are those of the IP packet as the client sees it, without Ethernet header and encapsulation, as IPVS counts.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// New connections; for UDP, new flows.
    pub connections: u64,
    /// Packets from clients.
    pub packets_in: u64,
    /// Packets to clients; they pass the director only with `nat`.
    pub packets_out: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients; they pass the director only with `nat`.
    pub bytes_out: u64,
    /// Packets of clients that the virtual server's `allow` and `deny` do not let in; of real servers always zero.
    pub denied: u64,
}

const _: () = assert!(size_of::<Counters>() == 48);

impl core::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        let Self { connections, packets_in, packets_out, bytes_in, bytes_out, denied } = other;
        self.connections += connections;
        self.packets_in += packets_in;
        self.packets_out += packets_out;
        self.bytes_in += bytes_in;
        self.bytes_out += bytes_out;
        self.denied += denied;
    }
}
