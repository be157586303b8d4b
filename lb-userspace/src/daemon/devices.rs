//! What devices that are made of others need: the program's view of their parts, and their receive offloads.

use super::{Instance, StartError};
use crate::datapath::DatapathError;
use crate::datapath::xdp::XdpDatapath;
use crate::datapath::xdp::attach::AttachedMode;
use crate::host::link::Link;
use crate::host::{offload, stack};

/// Tells the program of `link`, and of the slaves by which frames of a bond come in.
pub(super) fn register(datapath: &mut XdpDatapath, host: &[Link], link: &Link) -> Result<(), DatapathError> {
    datapath.set_interface(link.index, link.mac, None)?;
    let mut slaves = stack::slaves(host, link).into_iter();
    slaves.try_for_each(|slave| datapath.set_interface(slave.index, link.mac, Some(link.index)))
}

/// The indexes of `links` and of their slaves: of all that [`register`] tells of.
pub(super) fn indexes(host: &[Link], links: &[Link]) -> Vec<u32> {
    let slaves = links.iter().flat_map(|link| stack::slaves(host, link)).map(|slave| slave.index);
    links.iter().map(|link| link.index).chain(slaves).collect()
}

/// Switches off what would hand merged frames, or frames without their VLAN tags, to the program on `link` in this mode,
/// there and on all that it stands on.
pub(super) fn settle(instance: &Instance, host: &[Link], link: &Link, mode: AttachedMode) -> Result<(), StartError> {
    for device in std::iter::once(link).chain(stack::below(host, link)) {
        for feature in active(device, merging(mode))? {
            instance.disable_offload(&device.name, feature).map_err(|source| {
                let interface = device.name.clone();
                StartError::Offload { interface, feature, source }
            })?;
        }
    }
    for device in stack::untagging(host, link) {
        for feature in active(device, &offload::UNTAGGING)? {
            instance.disable_offload(&device.name, feature).map_err(|source| {
                let vlans: Vec<&str> = stack::vlans_on(host, link).iter().map(|vlan| vlan.name.as_str()).collect();
                let (interface, vlans) = (device.name.clone(), vlans.join(", "));
                StartError::Untagging { interface, vlans, feature, source }
            })?;
        }
    }
    Ok(())
}

/// The features that [`settle`] keeps switched off at `link` itself.
pub(super) fn unwanted(host: &[Link], link: &Link, mode: AttachedMode) -> Vec<&'static str> {
    let untagging: &[&str] = if stack::untagging(host, link).is_empty() { &[] } else { &offload::UNTAGGING };
    merging(mode).iter().chain(untagging).copied().collect()
}

/// What merges frames before the program sees them in this mode.
fn merging(mode: AttachedMode) -> &'static [&'static str] {
    match mode {
        AttachedMode::Native => &[offload::LRO],
        AttachedMode::Generic => &offload::GENERIC,
    }
}

fn active(link: &Link, features: &[&'static str]) -> Result<Vec<&'static str>, StartError> {
    match offload::active(&link.name, features) {
        // A device that knows no features at all merges nothing.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
        other => other.map_err(|source| StartError::Features { interface: link.name.clone(), source }),
    }
}
