//! What must survive forwarding and reach the outer header: options, class, congestion marks, fragmentation, flow label.

use lb_common::service::ForwardingMethod;

use super::bench::{Bench, Verdict, in_namespace};
use super::forwarding::{translated, tunnelled};
use super::frame::Frame;
use super::scene::{FAMILIES, Family, METHODS, PROTOCOLS, opening, real_mac, service};

/// What `method` makes of `packet`.
fn forwarded(method: ForwardingMethod, packet: &Frame, family: Family) -> Frame {
    match method {
        ForwardingMethod::Nat => translated(packet, family),
        ForwardingMethod::Dr => packet.sent_on(real_mac(1)),
        ForwardingMethod::Tun => tunnelled(packet, family),
    }
}

/// Every method forwards each packet that `changes` makes of an opening one, changed as it is.
fn are_kept_by_every_method(families: &[Family], changes: impl Fn(&Frame) -> Vec<Frame> + Sync) {
    in_namespace(|| {
        for method in METHODS {
            let bench = Bench::serving(method, 1);
            for family in families {
                for protocol in PROTOCOLS {
                    for packet in changes(&opening(service(*family, protocol), 1000)) {
                        bench.expect(&packet, Verdict::Transmit, &forwarded(method, &packet, *family));
                    }
                }
            }
        }
    });
}

#[test]
fn ipv4_options_are_kept() {
    are_kept_by_every_method(&[Family::V4], |frame| {
        // No-operation options (RFC 791 §3.1) with a router alert (RFC 2113) in front.
        let options = |words: usize| [vec![0x94, 4, 0, 0], vec![1; (words - 1) * 4]].concat();
        (1..=10).map(|words| Frame { options: options(words), ..frame.clone() }).collect()
    });
}

#[test]
fn ethernet_padding_is_no_part_of_the_packet() {
    are_kept_by_every_method(&FAMILIES, |frame| {
        [1, 6, 18, 46].map(|length| Frame { padding: vec![0xee; length], ..frame.clone() }).to_vec()
    });
}

#[test]
fn class_and_congestion_marks_are_kept_and_copied_to_the_outer_header() {
    are_kept_by_every_method(&FAMILIES, |frame| (0..=255).map(|class| Frame { class, ..frame.clone() }).collect());
}

#[test]
fn dont_fragment_and_identification_are_kept_and_copied_to_the_outer_header() {
    are_kept_by_every_method(&[Family::V4], |frame| {
        [(false, 0), (false, 0xabcd), (true, 0), (true, 0xfffe)]
            .map(|(dont_fragment, identification)| Frame { dont_fragment, identification, ..frame.clone() })
            .to_vec()
    });
}

#[test]
fn the_flow_label_is_kept_and_copied_to_the_outer_header() {
    are_kept_by_every_method(&[Family::V6], |frame| {
        [1, 0xa_bcde, 0xf_ffff].map(|flow_label| Frame { flow_label, class: 0xa5, ..frame.clone() }).to_vec()
    });
}

#[test]
fn every_time_to_live_above_one_is_lowered_by_one() {
    are_kept_by_every_method(&FAMILIES, |frame| (2..=255).map(|ttl| Frame { ttl, ..frame.clone() }).collect());
}
