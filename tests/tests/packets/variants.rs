//! Every variant of the programs passes the verifier, which prunes each differently.

use lb_userspace::datapath::xdp::attach;
use lb_userspace::datapath::xdp::object::{self, LoadOptions};
use lb_userspace::datapath::xdp::pins::MAPS;

use super::bench::{OPTIONS, in_namespace};

#[test]
fn every_variant_of_the_program_loads() {
    in_namespace(|| {
        for nat in [false, true] {
            for wide_tuples in [false, true] {
                for packet_log in [false, true] {
                    let options = LoadOptions { nat, wide_tuples, packet_log, ..OPTIONS };
                    let loaded = object::load(attach::PROGRAM, &MAPS, &options);
                    loaded.unwrap_or_else(|error| {
                        panic!("nat {nat}, wide_tuples {wide_tuples}, packet_log {packet_log}: {error:?}")
                    });
                }
            }
        }
    });
}
