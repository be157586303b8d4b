//! The program on the interfaces, and what must be so for that: last of all in a start.

use tracing::{info, warn};

use super::tables::Made;
use super::{StartError, devices};
use crate::config::Config;
use crate::datapath::xdp::XdpDatapath;
use crate::datapath::xdp::attach::{self, AttachedMode, Attachment};
use crate::datapath::xdp::pins::Keep;
use crate::host::journal::HostChange;
use crate::host::link::Link;
use crate::instance::Instance;

/// The configured interfaces, in the order of the file; refused where somebody else's XDP program is on one.
pub fn interfaces(config: &Config, instance: &Instance, host: &[Link]) -> Result<Vec<Link>, StartError> {
    let ours = instance.pins().programs();
    let wanted = config.xdp.interfaces.iter().filter_map(|name| host.iter().find(|link| link.name == *name));
    let wanted: Vec<Link> = wanted.cloned().collect();
    for link in &wanted {
        attach::check_free(link, &ours)?;
    }
    Ok(wanted)
}

/// Takes the place of an earlier daemon, if there was one, and attaches the program to `links`, of the `host`'s; what comes
/// before can still be undone.
pub fn attach_program(
    config: &Config,
    instance: &mut Instance,
    datapath: &mut XdpDatapath,
    made: &Made,
    (host, links): (&[Link], &[Link]),
) -> Result<Vec<Attachment>, StartError> {
    datapath.keep_interfaces(&devices::indexes(host, links))?;
    for link in links {
        devices::register(datapath, host, link)?;
    }
    let mode = attach::mode_for(host, links, config.xdp.mode);
    take_over(config, instance, Keep { links: true, maps: made.are_adopted })?;
    for link in links {
        devices::settle(instance, host, link, AttachedMode::Native)?;
    }
    let attachments = attach::attach_all(datapath.ebpf(), links, mode, instance.pins())?;
    // Last: what is not to serve any more has done so until now.
    instance.pins().keep_links(&links.iter().map(|link| link.index).collect::<Vec<_>>())?;
    // A program array that is pinned may be what the program before has used until now.
    instance.pins().pin_maps(datapath.ebpf(), made.are_adopted)?;
    for (attachment, link) in attachments.iter().zip(links) {
        devices::settle(instance, host, link, attachment.mode)?;
        instance.restore_offloads(&link.name, &devices::unwanted(host, link, attachment.mode));
        info!(interface = link.name, mode = attachment.mode.name(), "XDP program attached");
    }
    Ok(attachments)
}

/// Takes the place of an earlier daemon of the instance; what `keep` says of its pins stays.
fn take_over(config: &Config, instance: &mut Instance, keep: Keep) -> Result<(), StartError> {
    let undone = instance.take_over(keep, |change| match change {
        HostChange::NeighbourManaged { .. } => true,
        HostChange::OffloadDisabled { interface, feature: _ } => {
            // Which of them the mode needs off is seen once the program is attached.
            config.xdp.interfaces.contains(interface)
        }
    })?;
    for line in undone.done {
        warn!("left by an earlier run: {line}");
    }
    for line in undone.failed {
        warn!("left by an earlier run, not undone: {line}");
    }
    Ok(())
}
