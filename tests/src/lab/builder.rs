//! What a lab shall look like, checked before anything is made.

use anyhow::{Context as _, Result, bail};

use super::bpffs::Bpffs;
use super::process::ShowLog;
use super::stale::{self, Identity};
use super::uplink::Uplink;
use super::{Lab, topology};

/// The largest number of real servers in a lab.
pub const REAL_SERVERS_MAX: u8 = 16;

/// How the director reaches the real servers, which decides what they need to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// Their default route is the director.
    Nat,
    /// They have the VIPs on `lo`, silent towards ARP, and answer clients directly.
    Direct,
    /// As for direct routing; a program that decapsulates must run on each (`evenkeel decap`).
    Tunnel,
}

/// The director's interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arms {
    /// One: clients and real servers are behind `eth0`.
    One,
    /// Two: clients behind `eth0`, real servers behind `eth1`. For NAT only.
    Two,
}

/// A lab in the making: one real server, NAT, one arm and an MTU of 1500 unless told otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Builder {
    real_servers: u8,
    forwarding: Forwarding,
    arms: Arms,
    mtu: u16,
    uplink: Uplink,
    show_logs: ShowLog,
}

impl Default for Builder {
    fn default() -> Self {
        let (forwarding, arms, uplink) = (Forwarding::Nat, Arms::One, Uplink::Plain);
        Self { real_servers: 1, forwarding, arms, uplink, mtu: 1500, show_logs: ShowLog::Always }
    }
}

impl Builder {
    /// How many real servers, 1..=16.
    pub fn real_servers(mut self, count: u8) -> Self {
        self.real_servers = count;
        self
    }

    /// What the real servers are prepared for.
    pub fn forwarding(mut self, forwarding: Forwarding) -> Self {
        self.forwarding = forwarding;
        self
    }

    /// How many interfaces the director has.
    pub fn arms(mut self, arms: Arms) -> Self {
        self.arms = arms;
        self
    }

    /// The MTU of all interfaces, in bytes.
    pub fn mtu(mut self, mtu: u16) -> Self {
        self.mtu = mtu;
        self
    }

    /// What the director's interface towards the clients is made of.
    pub fn uplink(mut self, uplink: Uplink) -> Self {
        self.uplink = uplink;
        self
    }

    /// Shows logs of programs only after a panic. Outside of tests nobody holds back what a failure doesn't need.
    pub fn quiet(mut self) -> Self {
        self.show_logs = ShowLog::OnPanic;
        self
    }

    /// Removes what killed labs left, then makes this one; takes about a second. On an error nothing stays behind.
    pub fn build(self) -> Result<Lab> {
        let Self { real_servers, forwarding, arms, uplink, mtu, show_logs } = self;
        if !(1..=REAL_SERVERS_MAX).contains(&real_servers) {
            bail!("a lab has 1..={REAL_SERVERS_MAX} real servers, not {real_servers}");
        }
        if arms == Arms::Two && forwarding != Forwarding::Nat {
            bail!("a two-armed lab is for NAT only: with {forwarding:?} real servers answer clients directly");
        }
        if arms == Arms::Two && uplink != Uplink::Plain {
            bail!("a two-armed lab has plain interfaces, not {uplink:?}");
        }
        stale::remove_stale();
        let identity = Identity::take();
        let directory = tempfile::Builder::new()
            .prefix(&format!("{}-", identity.name()))
            .tempdir()
            .context("can't make a temporary folder for the lab")?;
        let bpffs = Bpffs::mount(directory.path().join("bpffs"))?;
        let made = topology::make(identity.name(), real_servers, forwarding, (arms, uplink), mtu)?;
        Ok(Lab {
            arms,
            uplink,
            show_logs,
            forwarding,
            real_servers: made.real_servers,
            _passes: made.passes,
            client: made.client,
            director: made.director,
            switch: made.switch,
            bpffs,
            directory,
            identity,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_labs_are_refused_before_anything_is_made() {
        let error = Lab::builder().real_servers(17).build().unwrap_err().to_string();
        assert_eq!(error, "a lab has 1..=16 real servers, not 17");
        let error = Lab::builder().arms(Arms::Two).forwarding(Forwarding::Direct).build().unwrap_err().to_string();
        assert_eq!(error, "a two-armed lab is for NAT only: with Direct real servers answer clients directly");
        let error = Lab::builder().arms(Arms::Two).uplink(Uplink::Vlan).build().unwrap_err().to_string();
        assert_eq!(error, "a two-armed lab has plain interfaces, not Vlan");
    }
}
