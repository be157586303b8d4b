//! What becomes of the interfaces while the daemon runs: the program follows one that is deleted and made again.

use tracing::{error, info};

use super::{Daemon, StartError, devices};
use crate::config::XdpMode;
use crate::datapath::xdp::attach::{self, AttachedMode, Attachment};
use crate::error::chain;
use crate::host::link::Link;

impl Daemon {
    /// Compares with the interfaces as they were read last: says which have lost the program, lets go of those that are gone,
    /// and attaches it to those that are there again.
    pub(super) fn follow_interfaces(&mut self) {
        let links = self.resolution.links.clone();
        let there: Vec<Link> = self.attachments.iter().filter_map(|one| one.of(&links)).cloned().collect();
        if let Err(error) = self.datapath.keep_interfaces(&devices::indexes(&links, &there)) {
            error!(error = chain(&error), "the program may take interfaces for ours that are gone");
        }
        for number in 0..self.attachments.len() {
            let Some(attachment) = self.attachments.get_mut(number) else { return };
            let found = links.iter().find(|link| link.index == attachment.ifindex);
            if attachment.observe(found) {
                error!(interface = attachment.interface, state = attachment.state(), "the XDP program is not attached");
            }
            let followed = match found {
                Some(link) => self.settle(&links, link, number),
                None => self.reappeared(&links, number),
            };
            let failure = followed.err().map(|error| chain(&error));
            let Some(attachment) = self.attachments.get_mut(number) else { return };
            if let Some(error) = failure.as_ref().filter(|_| failure != attachment.failure) {
                error!(interface = attachment.interface, error, "the interface is not as it should be");
            }
            attachment.failure = failure;
        }
    }

    /// What the program must know of a device, and what must be so for it, also where that has changed.
    fn settle(&mut self, host: &[Link], link: &Link, number: usize) -> Result<(), StartError> {
        let Some(attachment) = self.attachments.get(number) else { return Ok(()) };
        let registered = devices::register(&mut self.datapath, host, link);
        devices::settle(&self.instance, host, link, attachment.mode)?;
        Ok(registered?)
    }

    /// Attaches the program to an interface of the name of one that is gone, where there is one.
    fn reappeared(&mut self, host: &[Link], number: usize) -> Result<(), StartError> {
        let Some(gone) = self.attachments.get_mut(number) else { return Ok(()) };
        if gone.let_go() {
            info!(interface = gone.interface, "the interface is gone; the program comes back with it");
            self.instance.pins().remove_link(gone.ifindex)?;
        }
        let Some(gone) = self.attachments.get(number) else { return Ok(()) };
        let Some(link) = host.iter().find(|link| link.name == gone.interface) else { return Ok(()) };
        let mode = self.mode_beside_others(host, link);
        attach::check_free(link, &[])?;
        devices::settle(&self.instance, host, link, AttachedMode::Native)?;
        devices::register(&mut self.datapath, host, link)?;
        let links = std::slice::from_ref(link);
        let attached = attach::attach_all(self.datapath.ebpf(), links, mode, self.instance.pins())?;
        for (attachment, place) in attached.into_iter().zip(self.attachments.get_mut(number)) {
            info!(interface = link.name, mode = attachment.mode.name(), "XDP program attached again");
            *place = attachment;
        }
        let Some(attachment) = self.attachments.get(number) else { return Ok(()) };
        devices::settle(&self.instance, host, link, attachment.mode)
    }

    /// The mode that others have, since frames cannot be redirected from one kind to the other; without others the configured one.
    fn mode_beside_others(&self, host: &[Link], link: &Link) -> XdpMode {
        let others = self.attachments.iter().find(|one| one.of(host).is_some()).map(|one: &Attachment| one.mode);
        match others {
            Some(AttachedMode::Native) => XdpMode::Native,
            Some(AttachedMode::Generic) => XdpMode::Generic,
            None => attach::mode_for(host, std::slice::from_ref(link), self.config.xdp.mode),
        }
    }
}
