//! What must survive forwarding and reach the outer header: options, class, congestion marks, fragmentation, flow label.

use lb_common::net::Protocol;
use lb_common::service::ForwardingMethod;

use super::bench::{Bench, Verdict, in_namespace};
use super::forwarding::{translated, tunnelled};
use super::frame::Frame;
use super::scene::{FAMILIES, Family, METHODS, opening, real_mac, service};

/// What `method` makes of `packet`.
fn forwarded(method: ForwardingMethod, packet: &Frame, family: Family) -> Frame {
    match method {
        ForwardingMethod::Nat => translated(packet, family),
        ForwardingMethod::Dr => packet.sent_on(real_mac(1)),
        ForwardingMethod::Tun => tunnelled(packet, family),
    }
}

/// Every method forwards the packet that `change` makes of an opening one, changed as it is.
fn is_kept_by_every_method(families: &[Family], change: impl Fn(Frame) -> Frame + Sync) {
    in_namespace(|| {
        for method in METHODS {
            let bench = Bench::serving(method, 1);
            for family in families {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let packet = change(opening(service(*family, protocol), 1000));
                    bench.expect(&packet, Verdict::Transmit, &forwarded(method, &packet, *family));
                }
            }
        }
    });
}

#[test]
fn ipv4_options_are_kept() {
    for words in 1..=10_u8 {
        // No-operation options (RFC 791 §3.1) with a router alert (RFC 2113) in front.
        let mut options = vec![1; usize::from(words) * 4];
        options[..4].copy_from_slice(&[0x94, 4, 0, 0]);
        is_kept_by_every_method(&[Family::V4], |frame| Frame { options: options.clone(), ..frame });
    }
}

#[test]
fn ethernet_padding_is_no_part_of_the_packet() {
    for length in [1, 6, 18, 46] {
        is_kept_by_every_method(&FAMILIES, |frame| Frame { padding: vec![0xee; length], ..frame });
    }
}

#[test]
fn class_and_congestion_marks_are_kept_and_copied_to_the_outer_header() {
    for class in [0x01, 0x02, 0x03, 0xb8, 0xbb, 0xff] {
        is_kept_by_every_method(&FAMILIES, |frame| Frame { class, ..frame });
    }
}

#[test]
fn dont_fragment_and_identification_are_kept_and_copied_to_the_outer_header() {
    for (dont_fragment, identification) in [(false, 0), (false, 0xabcd), (true, 0), (true, 0xfffe)] {
        is_kept_by_every_method(&[Family::V4], |frame| Frame { dont_fragment, identification, ..frame });
    }
}

#[test]
fn the_flow_label_is_kept_and_copied_to_the_outer_header() {
    for flow_label in [1, 0xa_bcde, 0xf_ffff] {
        is_kept_by_every_method(&[Family::V6], |frame| Frame { flow_label, class: 0xa5, ..frame });
    }
}

#[test]
fn every_time_to_live_above_one_is_lowered_by_one() {
    for ttl in [2, 3, 64, 128, 129, 255] {
        is_kept_by_every_method(&FAMILIES, |frame| Frame { ttl, ..frame });
    }
}
