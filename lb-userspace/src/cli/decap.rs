//! `evenkeel decap`: the decapsulator on a `tun` real server.

use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::XdpMode;
use crate::datapath::xdp::attach::AttachedMode;
use crate::datapath::xdp::decap::{Decapsulator, Unwrapped};
use crate::host::link::{self, Link};
use crate::host::{offload, stack};

/// Unwraps tunnelled packets for `vips` that arrive by `interface`, until SIGTERM or SIGINT.
///
/// # Errors
///
/// When the program cannot be attached there.
pub fn decap(interface: &str, vips: &[IpAddr], mode: XdpMode) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(interface, vips, mode))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(interface: &str, vips: &[IpAddr], mode: XdpMode) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let links = link::links(&link::connect()?).await.context("cannot read the interfaces by netlink")?;
    let Some(link) = links.iter().find(|link| link.name == interface) else {
        let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
        bail!("interface {interface} does not exist; there are {}", names.join(", "));
    };
    if !link.is_ethernet {
        bail!("interface {interface} does not carry Ethernet; take the device that the packets arrive by");
    }
    // On what a VLAN device or a bond stands on, too: packets come by that.
    let devices: Vec<&Link> = std::iter::once(link).chain(stack::below(&links, link)).collect();
    refuse_merging(&devices, &[offload::LRO])?;
    if mode == XdpMode::Generic {
        refuse_merging(&devices, &offload::GENERIC)?;
    }
    let decapsulator = Decapsulator::start(link, vips, mode)?;
    if decapsulator.mode == AttachedMode::Generic {
        refuse_merging(&devices, &offload::GENERIC)?;
    }
    let vips: Vec<String> = vips.iter().map(ToString::to_string).collect();
    eprintln!("unwrapping for {} on {interface} ({} mode)", vips.join(", "), decapsulator.mode.name());
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let unwrapped = decapsulator.unwrapped()?;
    let Unwrapped { ipip, six_in_four, four_in_six, ip6ip6, congested } = unwrapped;
    eprintln!(
        "unwrapped {ipip} IPIP, {six_in_four} 6in4, {four_in_six} 4in6 and {ip6ip6} IP6IP6 packets, \
         dropped {congested} for congestion on the way"
    );
    Ok(())
}

/// A merged packet has many outer headers, of which one would be stripped.
fn refuse_merging(devices: &[&Link], features: &[&'static str]) -> anyhow::Result<()> {
    for Link { name, .. } in devices {
        if let Some(feature) = offload::active(name, features).unwrap_or_default().first() {
            bail!(
                "interface {name} merges received packets ({feature}), which cannot be unwrapped then; \
                 switch it off with `ethtool -K {name} {feature} off`"
            );
        }
    }
    Ok(())
}
