//! The table of all domains: the domains themselves, and their numbers and names.
//!
//! dom0 is built once and exists for ever, so a lookup returns a plain reference. A domU is reference-counted, because
//! it may be torn down while another CPU handles an interrupt for it.
//!
//! A domain's place in the table is its number modulo [`DOMAINS`], so that a lookup is one access. Numbers are given in
//! rising order, without those whose place is taken: so that of a domain that has ended is not used again before all others
//! have been ([`DomId::LAST`]), and what is late for it finds no other domain. A number is reserved before its domain is
//! built, and given back when all that the domain had is free again, its place in the console's table included. Its name
//! is given back as soon as the domain cannot be looked up any more, so that a domain of the same name can be created while
//! the memory of this one is zeroed.

use super::Domain;
use super::images::Rams;
use crate::host::Host;
use crate::ids::{DOMAINS, DomId, DomainName, Intid};
use crate::sync::{Lock, Once, Rank, Slot, set_once};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;
use doorward_api::InvalidName;

/// dom0's name; it is the one that Xen uses.
pub const DOM0_NAME: &str = "Domain-0";

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
    /// The domUs, each at its [`DomId::slot`]. The first place is empty.
    domus: Vec<Slot<Domain>>,
    registry: Lock<Registry>,
}

impl Domains {
    /// An empty table.
    #[must_use]
    pub fn new(host: &'static Host) -> Domains {
        let domus = (0..DOMAINS).map(|_| Slot::new()).collect();
        Domains { host, dom0: Once::new(), domus, registry: Lock::new(Rank::Domain, Registry::new()) }
    }

    /// The domain with this number.
    #[must_use]
    pub fn get(&self, id: DomId) -> Option<DomainRef<'_>> {
        self.at(id.slot()).filter(|domain| domain.id() == id)
    }

    /// The domain at this [`DomId::slot`].
    #[must_use]
    pub fn at(&self, slot: usize) -> Option<DomainRef<'_>> {
        match slot {
            0 => self.dom0.get().map(DomainRef::Dom0),
            _ => self.domus.get(slot)?.get().map(DomainRef::DomU),
        }
    }

    /// The domain with this name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<DomainRef<'_>> {
        let id = self.registry.lock().named(name)?;
        self.get(id)
    }

    /// Reserves the next number for a domain with this name.
    ///
    /// # Errors
    ///
    /// [`NotReserved`].
    pub fn reserve(&self, name: &str) -> Result<DomId, NotReserved> {
        self.registry.lock().reserve(name)
    }

    /// Keeps the RAM of a domain that was not built, until it is [taken](Domains::take_leftover) to be zeroed, and gives its
    /// name back.
    pub fn leave(&self, id: DomId, rams: Rams) {
        self.registry.lock().leave(id, rams);
    }

    /// Takes the RAM that a domain that was not built has left.
    #[must_use]
    pub fn take_leftover(&self, id: DomId) -> Option<Rams> {
        self.registry.lock().entry(id)?.as_mut()?.leftover.take().map(|rams| *rams)
    }

    /// Gives the number of a domain back that is not in the table, and its name if it still has it.
    pub fn give_back(&self, id: DomId) {
        self.registry.lock().give_back(id);
    }

    /// Whether the number is a domain's, also if it is being built or taken down.
    #[must_use]
    pub fn is_reserved(&self, id: DomId) -> bool {
        self.registry.lock().entry(id).is_some()
    }

    /// The number of domains that have a number, dom0 included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.registry.lock().count()
    }

    /// dom0, which exists from when it is built on.
    #[must_use]
    pub fn dom0(&self) -> Option<&Domain> {
        self.dom0.get()
    }

    /// The domains that exist now.
    pub fn iter(&self) -> impl Iterator<Item = DomainRef<'_>> {
        (0..DOMAINS).filter_map(|slot| self.at(slot))
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
    /// Returns the domain if the table already has one at its place, which is then not reserved for it.
    pub fn add(&self, domain: Arc<Domain>) -> Result<(), Arc<Domain>> {
        match self.domus.get(domain.id().slot()) {
            Some(slot) if domain.id() != DomId::DOM0 => slot.put(domain),
            _ => Err(domain),
        }
    }

    /// Takes a domU out of the table, so that it can no longer be looked up, and its name from it. References to it that
    /// exist are short-lived. Its number stays reserved until it is [given back](Domains::give_back).
    #[must_use]
    pub fn take(&self, id: DomId) -> Option<Arc<Domain>> {
        self.get(id)?;
        let domain = self.domus.get(id.slot())?.take();
        self.registry.lock().forget_name(id);
        domain
    }
}

/// Why a number was not reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotReserved {
    /// Another domain has the name.
    NameTaken(DomId),
    /// It is no name.
    BadName(InvalidName),
    /// There are [`DOMAINS`] domains.
    TooMany,
}

impl fmt::Display for NotReserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotReserved::NameTaken(id) => write!(f, "{id} has the same name"),
            NotReserved::BadName(error) => error.fmt(f),
            NotReserved::TooMany => write!(f, "more than {DOMAINS} domains are not supported"),
        }
    }
}

/// The numbers that are reserved, and the names of their domains.
struct Registry {
    /// Each at its [`DomId::slot`].
    entries: Vec<Option<Entry>>,
    /// The number that was reserved last.
    last: DomId,
}

struct Entry {
    id: DomId,
    /// `None`: it has been given back before the number.
    name: Option<DomainName>,
    /// RAM that has to be zeroed, of a domain that was not built.
    leftover: Option<Box<Rams>>,
}

impl Registry {
    fn new() -> Registry {
        let mut entries: Vec<Option<Entry>> = (0..DOMAINS).map(|_| None).collect();
        if let Some(first) = entries.first_mut() {
            *first = Some(Entry { id: DomId::DOM0, name: DomainName::from(DOM0_NAME).ok(), leftover: None });
        }
        Registry { entries, last: DomId::DOM0 }
    }

    fn named(&self, name: &str) -> Option<DomId> {
        let has_name = |entry: &&Entry| entry.name.is_some_and(|own| own.as_str() == name);
        self.entries.iter().flatten().find(has_name).map(|entry| entry.id)
    }

    fn count(&self) -> usize {
        self.entries.iter().flatten().count()
    }

    fn reserve(&mut self, name: &str) -> Result<DomId, NotReserved> {
        if let Some(id) = self.named(name) {
            return Err(NotReserved::NameTaken(id));
        }
        doorward_api::Name::new(name).map_err(NotReserved::BadName)?;
        let name = DomainName::from(name).map_err(|_| NotReserved::BadName(InvalidName::Length))?;
        // Of that many numbers in a row, each place has one; those at the place of dom0 are not used.
        for _ in 0..=DOMAINS {
            let id = if self.last.0 < DomId::LAST.0 { DomId(self.last.0 + 1) } else { DomId(1) };
            self.last = id;
            if let Some(place @ None) = self.entries.get_mut(id.slot()) {
                *place = Some(Entry { id, name: Some(name), leftover: None });
                return Ok(id);
            }
        }
        Err(NotReserved::TooMany)
    }

    fn entry(&mut self, id: DomId) -> Option<&mut Option<Entry>> {
        self.entries.get_mut(id.slot()).filter(|entry| entry.as_ref().is_some_and(|entry| entry.id == id))
    }

    fn forget_name(&mut self, id: DomId) {
        if let Some(Some(entry)) = self.entry(id) {
            entry.name = None;
        }
    }

    fn leave(&mut self, id: DomId, rams: Rams) {
        if let Some(Some(entry)) = self.entry(id) {
            (entry.name, entry.leftover) = (None, Some(Box::new(rams)));
        }
    }

    fn give_back(&mut self, id: DomId) {
        if id != DomId::DOM0
            && let Some(entry) = self.entry(id)
        {
            *entry = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    #[test]
    fn numbers_are_given_in_rising_order_and_names_once() {
        let mut registry = Registry::new();
        assert_eq!([registry.reserve("a"), registry.reserve("b")], [Ok(DomId(1)), Ok(DomId(2))]);
        assert_eq!(registry.reserve("a"), Err(NotReserved::NameTaken(DomId(1))));
        assert_eq!(registry.reserve(DOM0_NAME), Err(NotReserved::NameTaken(DomId(0))));
        assert_eq!(
            [registry.reserve(""), registry.reserve(&"x".repeat(64))],
            [Err(NotReserved::BadName(InvalidName::Length)); 2]
        );
        assert_eq!((registry.named("b"), registry.named("c"), registry.count()), (Some(DomId(2)), None, 3));
        registry.give_back(DomId(1));
        assert_eq!(registry.reserve("a"), Ok(DomId(3)), "a number is not used again at once");
        registry.give_back(DomId(0));
        assert_eq!(registry.named(DOM0_NAME), Some(DomId(0)));
    }

    #[test]
    fn a_domain_that_is_torn_down_keeps_its_number_without_its_name() {
        let mut registry = Registry::new();
        assert_eq!(registry.reserve("a"), Ok(DomId(1)));
        registry.forget_name(DomId(1));
        assert_eq!(registry.reserve("a"), Ok(DomId(2)));
        assert_eq!(registry.count(), 3);
        registry.give_back(DomId(1));
        assert_eq!((registry.named("a"), registry.count()), (Some(DomId(2)), 2));
    }

    #[test]
    fn each_domain_has_a_place_of_its_own_and_no_number_of_another_one() {
        let mut registry = Registry::new();
        let all: Vec<DomId> = (1..DOMAINS).map(|n| registry.reserve(&format!("d{n}")).unwrap()).collect();
        assert_eq!(registry.reserve("more"), Err(NotReserved::TooMany));
        registry.give_back(all[99]);
        let next = registry.reserve("more").unwrap();
        assert!(next.slot() == all[99].slot() && next.0 > 255 && next.slot() != 0, "{next}");
        // What is late for the domain that had the place before finds nothing.
        assert!(registry.entry(all[99]).is_none());
        registry.give_back(all[99]);
        assert_eq!(registry.named("more"), Some(next));
    }

    #[test]
    fn when_all_numbers_have_been_given_the_first_ones_that_are_free_follow() {
        let mut registry = Registry::new();
        assert_eq!(registry.reserve("stays"), Ok(DomId(1)));
        let mut last = DomId(1);
        for _ in 0..70_000 {
            let id = registry.reserve("comes-and-goes").unwrap();
            assert!(id.slot() > 1 && id.0 <= DomId::LAST.0 && (id.0 > last.0 || id == DomId(2)), "{id} after {last}");
            registry.give_back(id);
            last = id;
        }
    }
}
