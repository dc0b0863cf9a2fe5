//! The table of all domains.
//!
//! dom0 is built once and exists for ever, so a lookup returns a plain reference. A domU is reference-counted, because
//! it may be torn down while another CPU handles an interrupt for it.

use super::Domain;
use crate::host::Host;
use crate::ids::{DomId, Intid};
use crate::sync::{Once, Slot, set_once};
use alloc::sync::Arc;
use core::ops::Deref;

/// The largest number of domains, dom0 included.
pub const DOMAINS: usize = 1 + crate::platform::DOMAINS;

/// A domain that was looked up. It exists at least as long as this value.
pub enum DomainRef<'a> {
    /// dom0.
    Dom0(&'a Domain),
    /// A domU.
    DomU(Arc<Domain>),
}

impl Deref for DomainRef<'_> {
    type Target = Domain;

    fn deref(&self) -> &Domain {
        match self {
            DomainRef::Dom0(domain) => domain,
            DomainRef::DomU(domain) => domain,
        }
    }
}

/// The table of domains.
pub struct Domains {
    /// The machine that the domains share.
    pub host: &'static Host,
    dom0: Once<Domain>,
    domus: [Slot<Domain>; DOMAINS - 1],
}

impl Domains {
    /// An empty table.
    #[must_use]
    pub fn new(host: &'static Host) -> Domains {
        Domains { host, dom0: Once::new(), domus: [const { Slot::new() }; DOMAINS - 1] }
    }

    /// The domain with this number.
    #[must_use]
    pub fn get(&self, id: DomId) -> Option<DomainRef<'_>> {
        match usize::from(id.0).checked_sub(1) {
            None => self.dom0.get().map(DomainRef::Dom0),
            Some(domu) => self.domus.get(domu)?.get().map(DomainRef::DomU),
        }
    }

    /// dom0, which exists from when it is built on.
    #[must_use]
    pub fn dom0(&self) -> Option<&Domain> {
        self.dom0.get()
    }

    /// The domains that exist now.
    pub fn iter(&self) -> impl Iterator<Item = DomainRef<'_>> {
        (0..DOMAINS as u16).filter_map(|id| self.get(DomId(id)))
    }

    /// The domain that owns an SPI.
    #[must_use]
    pub fn of_spi(&self, spi: Intid) -> Option<DomainRef<'_>> {
        self.get(self.host.spis.get(spi)?)
    }

    /// Puts dom0 into the table.
    ///
    /// # Panics
    ///
    /// If dom0 has been added before.
    pub fn add_dom0(&self, domain: Domain) -> &Domain {
        if set_once(&self.dom0, domain).is_err() {
            panic!("dom0 is built twice");
        }
        match self.dom0.get() {
            Some(domain) => domain,
            None => unreachable!("dom0 has just been set"),
        }
    }

    /// Puts a domU into the table.
    ///
    /// # Errors
    ///
    /// Returns the domain if the table already has one with this number, or if the number is too large.
    pub fn add(&self, domain: Arc<Domain>) -> Result<(), Arc<Domain>> {
        match usize::from(domain.id().0).checked_sub(1).and_then(|domu| self.domus.get(domu)) {
            Some(slot) => slot.put(domain),
            None => Err(domain),
        }
    }

    /// Takes a domU out of the table, so that it can no longer be looked up. References to it that exist are
    /// short-lived.
    #[must_use]
    pub fn take(&self, id: DomId) -> Option<Arc<Domain>> {
        self.domus.get(usize::from(id.0).checked_sub(1)?)?.take()
    }
}
