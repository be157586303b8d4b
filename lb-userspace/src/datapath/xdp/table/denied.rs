//! Ends the connections of clients that a virtual server serves no longer, after its list has changed.

use lb_common::connection::{Meta, State};
use lb_common::net::Address;

use super::sweep::exact_client;
use super::words::{ServiceWords, Tables};
use crate::datapath::xdp::prefix_tree::PrefixTree;

/// Ends every connection of the virtual server at `index` whose client is not permitted, and the templates of single clients;
/// those of networks are of no use to a client that is denied. How many connections there were.
///
/// For a time when every packet goes by the new list. Ten million connections take some tenths of a second.
pub fn end(tables: &Tables<'_>, index: u32, permitted: &PrefixTree) -> u64 {
    let Some(service) = tables.service(index) else { return 0 };
    let mut ended = 0;
    for (slot, number) in tables.slots().zip(0..) {
        let meta = slot.meta();
        let is_free = matches!(meta.state(), State::FREE | State::LOCKED);
        // A connection of another generation is another virtual server's, or over.
        let is_its = || {
            tables
                .real_server(meta.real_server())
                .is_some_and(|real| real.virtual_server() == index && real.generation_octet() == meta.generation())
        };
        if is_free || !is_its() {
            continue;
        }
        let is_template = State::is_template(meta.state());
        if is_template && !is_for_one(service) {
            continue;
        }
        let Some((key, meta, tuple)) = slot.read_with(|_, _| tables.tuple(number)) else { continue };
        let client = if service.is_wide() {
            tuple.map(|tuple| tuple.client)
        } else {
            Some(Address::from_ipv4_word(exact_client(key)))
        };
        // Lost to the packet path, it may have moved on; the next look finds its new state.
        let mut meta = meta;
        while client.is_some_and(|client| !permitted.permits(client)) {
            if slot.replace(meta, Meta::FREE) {
                tables.count_down(meta.real_server(), meta.state());
                ended += u64::from(!is_template);
                break;
            }
            let now = slot.meta();
            let is_same = slot.key() == key && now.real_server() == meta.real_server();
            if !is_same || matches!(now.state(), State::FREE | State::LOCKED) {
                break;
            }
            meta = now;
        }
    }
    ended
}

/// Whether each client has a template of its own.
fn is_for_one(service: ServiceWords<'_>) -> bool {
    service.persistence_mask() == Address { octets: [0xff; 16] }
}
