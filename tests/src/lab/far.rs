//! A network behind the client, which becomes its router: there a narrow link lies out of the director's sight.

use anyhow::Result;

use super::Lab;
use super::address::{CLIENT4, CLIENT6};
use super::builder::Forwarding;
use super::namespace::Namespace;
use super::topology::QUIET;

impl Lab {
    /// A host behind the client, 10.99.0.2 and fd99::2: the client does not send more than `mtu` bytes there. Everybody gets a
    /// route.
    ///
    /// # Errors
    /// Where the kernel refuses something.
    pub fn far_client(&self, mtu: u32) -> Result<Namespace> {
        let far = Namespace::create(format!("{}-far", self.name()))?;
        far.sysctls(&QUIET)?;
        let client = self.client();
        client.sysctls(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
        client.ip_batch(&[
            format!("link add name far type veth peer name eth0 netns {}", far.name()),
            format!("link set far mtu {mtu} up"),
            "address add 10.99.0.1/24 dev far".to_owned(),
            "address add fd99::1/64 dev far nodad".to_owned(),
        ])?;
        far.ip_batch(&[
            "link set lo up".to_owned(),
            "link set eth0 up".to_owned(),
            "address add 10.99.0.2/24 dev eth0".to_owned(),
            "address add fd99::2/64 dev eth0 nodad".to_owned(),
            "route add default via 10.99.0.1".to_owned(),
            "route add default via fd99::1".to_owned(),
        ])?;
        let routes = [format!("route add 10.99.0.0/24 via {CLIENT4}"), format!("route add fd99::/64 via {CLIENT6}")];
        self.director().ip_batch(&routes)?;
        if self.forwarding() != Forwarding::Nat {
            self.real_servers().iter().try_for_each(|real| real.namespace().ip_batch(&routes))?;
        }
        Ok(far)
    }
}
