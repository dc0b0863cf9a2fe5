//! Which bridges are above a function, and by which other numbers it or a part of it answers.
//!
//! Bus numbers are those that the firmware has given. Configuration space is only read.

use super::ConfigSpace;
use super::regs::{self, *};
use crate::ids::Pa;
use crate::platform::PciHost;
use alloc::vec::Vec;

/// Size of one function's configuration space in bytes (7.2.2).
pub const FUNCTION: u64 = 4096;

/// The functions of a device, without ARI.
const FUNCTIONS: u16 = 8;

/// The largest number of capabilities that are followed: there is room for no more in configuration space.
const MOST: usize = 48;
const MOST_EXTENDED: usize = 960;

/// An ECAM: the configuration space of buses `first` to `last` of a segment.
#[derive(Clone, Copy, Debug)]
pub struct Buses {
    /// The configuration space of bus `first`.
    pub base: Pa,
    /// The first bus.
    pub first: u8,
    /// The last bus.
    pub last: u8,
}

impl Buses {
    /// The ECAM of a PCI host.
    #[must_use]
    pub fn of(host: &PciHost) -> Buses {
        Buses { base: host.ecam.base, first: host.buses.0, last: host.buses.1 }
    }

    /// The configuration space of a function by its requester ID; `None` on a bus that is not here.
    #[must_use]
    pub fn page(self, rid: u16) -> Option<Pa> {
        let bus = (rid >> 8) as u8;
        let first = u64::from(self.first) << 8;
        let offset = u64::from(rid).checked_sub(first)?.checked_mul(FUNCTION)?;
        (bus <= self.last).then(|| self.base.add(offset))
    }

    /// The functions that exist on a bus, with their requester IDs and the words of their Header Types.
    fn on<C: ConfigSpace>(self, bus: u8, config: &C) -> impl Iterator<Item = (u16, Pa, u32)> {
        let mut multi = false;
        let first = u16::from(bus) << 8;
        (first..=first | 0xff).filter_map(move |rid| {
            let is_first = rid.is_multiple_of(FUNCTIONS);
            if !is_first && !multi {
                return None;
            }
            let page = self.page(rid)?;
            let exists = config.read32(page.add(ID)) != NONE;
            let header = if exists { config.read32(page.add(HEADER)) } else { 0 };
            if is_first {
                multi = exists && header & MULTI_FUNCTION != 0;
            }
            exists.then_some((rid, page, header))
        })
    }

    /// Visits the functions that exist on the first bus and on all buses that bridges lead to from there, with their
    /// requester IDs and the words of their Header Types, until `visit` returns `false`. Other buses are not read,
    /// because a machine may not answer there.
    pub fn visit<C: ConfigSpace>(self, config: &C, mut visit: impl FnMut(u16, Pa, u32) -> bool) {
        let mut seen = [false; 256];
        let mut buses = alloc::vec![self.first];
        while let Some(bus) = buses.pop() {
            if seen.get_mut(usize::from(bus)).is_none_or(|seen| core::mem::replace(seen, true)) {
                continue;
            }
            for (rid, page, header) in self.on(bus, config) {
                if !visit(rid, page, header) {
                    return;
                }
                if header & HEADER_TYPE == BRIDGE {
                    let [_, secondary, ..] = config.read32(page.add(BUSES)).to_le_bytes();
                    if (self.first..=self.last).contains(&secondary) {
                        buses.push(secondary);
                    }
                }
            }
        }
    }

    /// The bridges that forward configuration accesses for a bus, with their secondary buses.
    fn bridges_to<C: ConfigSpace>(self, config: &C, bus: u8) -> Vec<(u8, Pa)> {
        let leads = |page: Pa, header: u32| {
            let [_, secondary, subordinate, _] = config.read32(page.add(BUSES)).to_le_bytes();
            let is_above = header & HEADER_TYPE == BRIDGE && (secondary..=subordinate).contains(&bus);
            (is_above && secondary != 0).then_some((secondary, page))
        };
        let mut found = Vec::new();
        self.visit(config, |_, page, header| {
            found.extend(leads(page, header));
            true
        });
        if found.is_empty() {
            // The bus may be below a root bus that is not the first, which no bridge leads to.
            let all = (self.first..=self.last.min(bus)).flat_map(|bus| self.on(bus, config));
            found.extend(all.filter_map(|(_, page, header)| leads(page, header)));
        }
        found
    }
}

/// Calls `each` with the ID and the offset of every capability of a function.
pub fn capabilities(page: Pa, config: &impl ConfigSpace, mut each: impl FnMut(u8, u64)) {
    if config.read32(page.add(COMMAND)) & HAS_CAPABILITIES == 0 {
        return;
    }
    let mut at = config.read32(page.add(CAPABILITIES)) as u8;
    for _ in 0..MOST {
        // The two lowest bits are reserved.
        at &= !3;
        if u64::from(at) < 0x40 {
            return;
        }
        let [id, next, ..] = config.read32(page.add(at.into())).to_le_bytes();
        each(id, at.into());
        at = next;
    }
}

/// Calls `each` with the ID and the offset of every extended capability of a function.
pub fn extended_capabilities(page: Pa, config: &impl ConfigSpace, mut each: impl FnMut(u16, u64)) {
    let mut at = EXTENDED;
    for _ in 0..MOST_EXTENDED {
        let head = config.read32(page.add(at));
        if head == 0 || head == NONE {
            return;
        }
        each(head as u16, at);
        at = u64::from(head >> 20) & !3;
        if at < EXTENDED {
            return;
        }
    }
}

/// Configuration space of the bridges above a bus of a segment with these ECAMs.
#[must_use]
pub fn bridges_above(ecams: &[Buses], bus: u8, config: &impl ConfigSpace) -> Vec<Pa> {
    ecams.iter().flat_map(|ecam| ecam.bridges_to(config, bus)).map(|(_, page)| page).collect()
}

/// What has to be kept from a domain so that it does not reach a function.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Configuration space of the function and of everything that is the same function or a part of it.
    pub pages: Vec<Pa>,
    /// Configuration space of the bridges above it.
    pub bridges: Vec<Pa>,
}

/// Why a function cannot be hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// Nothing answers there, and no bridge leads to its bus: the firmware has not numbered the buses, so the number
    /// says nothing about which function is meant.
    NoWay,
    /// Its bus is not in the ECAM.
    NoBus,
}

/// Finds the surroundings of the function `rid` in a segment with these ECAMs.
///
/// # Errors
///
/// [`Unknown`].
pub fn surroundings(ecams: &[Buses], rid: u16, config: &impl ConfigSpace) -> Result<Surroundings, Unknown> {
    let page_of = |rid: u16| ecams.iter().find_map(|ecam| ecam.page(rid));
    let own = page_of(rid).ok_or(Unknown::NoBus)?;
    let bus = (rid >> 8) as u8;
    let above: Vec<(u8, Pa)> = ecams.iter().flat_map(|ecam| ecam.bridges_to(config, bus)).collect();
    let is_root = ecams.iter().any(|ecam| ecam.first == bus);
    let exists = config.read32(own.add(ID)) != NONE;
    if above.is_empty() && !is_root && !exists {
        return Err(Unknown::NoWay);
    }
    let mut pages = alloc::vec![own];
    // A port that forwards with ARI passes on all eight bits of the function number. A device without ARI sees the
    // three lowest ones, so each function answers at 32 places.
    let ari = above.iter().any(|&(secondary, port)| secondary == bus && forwards_with_ari(port, config));
    if ari && !has_extended(own, config, regs::ARI) {
        let first = rid & 0xff00 | rid & 7;
        pages.extend((0..32).filter_map(|n| page_of(first | n << 3)).filter(|&page| page != own));
    }
    pages.extend(virtual_functions(own, rid, config).filter_map(page_of));
    Ok(Surroundings { pages, bridges: above.into_iter().map(|(_, page)| page).collect() })
}

fn forwards_with_ari(port: Pa, config: &impl ConfigSpace) -> bool {
    let mut on = false;
    capabilities(port, config, |id, at| {
        // Version 1 of the capability ends before Device Control 2.
        if id == EXPRESS && config.read32(port.add(at)) >> 16 & 0xf >= 2 {
            on |= config.read32(port.add(at).add(DEVICE_CONTROL2)) & ARI_FORWARDING != 0;
        }
    });
    on
}

fn has_extended(function: Pa, config: &impl ConfigSpace, wanted: u16) -> bool {
    let mut found = false;
    extended_capabilities(function, config, |id, _| found |= id == wanted);
    found
}

/// The requester IDs of the virtual functions that the firmware has enabled. A domain that does not see the physical
/// function cannot enable more.
fn virtual_functions(function: Pa, rid: u16, config: &impl ConfigSpace) -> impl Iterator<Item = u16> {
    let (mut count, mut offset, mut stride) = (0u16, 0u16, 0u16);
    extended_capabilities(function, config, |id, at| {
        let word = |n: u64| config.read32(function.add(at).add(n));
        if id == SR_IOV && word(VF_CONTROL) & VF_ENABLE != 0 {
            count = word(VF_COUNT) as u16;
            (offset, stride) = (word(VF_PLACE) as u16, (word(VF_PLACE) >> 16) as u16);
        }
    });
    (0..count).map(move |n| rid.wrapping_add(offset).wrapping_add(stride.wrapping_mul(n)))
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    const ECAM: Buses = Buses { base: Pa(0x4000_0000), first: 0, last: 0xff };

    fn at(rid: u16) -> Pa {
        ECAM.page(rid).unwrap()
    }

    /// A bridge with these buses, and a PCI Express capability with ARI forwarding or not.
    fn bridge(fake: &Fake, rid: u16, secondary: u32, subordinate: u32, ari: u32) {
        let fields = [
            (COMMAND, HAS_CAPABILITIES),
            (HEADER, BRIDGE | MULTI_FUNCTION),
            (BUSES, subordinate << 16 | secondary << 8),
            (CAPABILITIES, 0x40),
            (0x40, 0x0002_0010),
            (0x68, ari << 5),
        ];
        fake.function(at(rid), &fields);
    }

    /// Root port 0:2.1 to a switch on buses 3 to 6; hidden is 5:00.0. Beside it root port 0:3.0 to bus 7.
    fn machine() -> Fake {
        let fake = Fake::default();
        fake.function(at(0), &[]);
        bridge(&fake, 0x10, 0, 0, 0);
        bridge(&fake, 0x11, 3, 6, 0);
        bridge(&fake, 0x18, 7, 7, 0);
        bridge(&fake, 0x300, 4, 6, 0);
        bridge(&fake, 0x400, 5, 5, 0);
        bridge(&fake, 0x408, 6, 6, 0);
        fake.function(at(0x500), &[]);
        fake
    }

    #[test]
    fn the_bridges_above_a_function_are_found_and_no_others() {
        let found = surroundings(&[ECAM], 0x500, &machine()).unwrap();
        assert_eq!(found.pages, [at(0x500)]);
        assert_eq!(found.bridges, [at(0x11), at(0x300), at(0x400)]);
    }

    #[test]
    fn a_function_on_a_root_bus_has_no_bridge_above_it() {
        let fake = machine();
        let none = Surroundings { pages: [at(0x8)].into(), bridges: Vec::new() };
        assert_eq!(surroundings(&[ECAM], 0x8, &fake), Ok(none), "an empty slot");
        // A root bus that is not the first one: something answers, and no bridge leads there.
        fake.function(at(0x8000), &[]);
        assert_eq!(surroundings(&[ECAM], 0x8000, &fake).unwrap().bridges, []);
        bridge(&fake, 0x8008, 0x81, 0x81, 0);
        fake.function(at(0x8100), &[]);
        assert_eq!(surroundings(&[ECAM], 0x8100, &fake).unwrap().bridges, [at(0x8008)]);
    }

    #[test]
    fn a_visit_ends_on_circular_bridges() {
        let fake = machine();
        bridge(&fake, 0x400, 3, 4, 0);
        let mut visited = Vec::new();
        ECAM.visit(&fake, |rid, _, _| {
            visited.push(rid);
            true
        });
        visited.sort_unstable();
        assert_eq!(visited, [0, 0x10, 0x11, 0x18, 0x300, 0x400, 0x408]);
    }

    #[test]
    fn a_function_that_nothing_leads_to_is_unknown() {
        assert_eq!(surroundings(&[ECAM], 0x900, &machine()), Err(Unknown::NoWay));
        assert_eq!(surroundings(&[Buses { last: 8, ..ECAM }], 0x900, &machine()), Err(Unknown::NoBus));
        // An empty slot behind a port may get a device later.
        let behind = surroundings(&[ECAM], 0x700, &machine()).unwrap();
        assert_eq!((behind.pages, behind.bridges), ([at(0x700)].into(), [at(0x18)].into()));
    }

    #[test]
    fn the_buses_of_a_segment_may_be_in_several_ecams() {
        let fake = machine();
        let low = Buses { last: 3, ..ECAM };
        let high = Buses { base: at(0x400), first: 4, ..ECAM };
        assert_eq!(surroundings(&[high, low], 0x500, &fake).unwrap().bridges, [at(0x400), at(0x11), at(0x300)]);
    }

    #[test]
    fn with_ari_forwarding_a_device_without_ari_is_hidden_at_all_its_places() {
        let fake = machine();
        bridge(&fake, 0x400, 5, 5, 1);
        let pages = surroundings(&[ECAM], 0x502, &fake).unwrap().pages;
        let all: Vec<Pa> = (0..32).map(|n| at(0x502 + 8 * n)).collect();
        assert_eq!(pages, all);
        // With ARI, the numbers are those of different functions.
        fake.function(at(0x502), &[(EXTENDED, 0x0001_000e)]);
        assert_eq!(surroundings(&[ECAM], 0x502, &fake).unwrap().pages, [at(0x502)]);
    }

    #[test]
    fn the_virtual_functions_of_a_hidden_function_are_hidden_if_they_exist() {
        let fake = machine();
        let sr_iov =
            |on: u32| [(EXTENDED, 0x1401_0001), (0x140, 0x0001_0010), (0x148, on), (0x150, 3), (0x154, 0x0002_0080)];
        fake.function(at(0x500), &sr_iov(1));
        let pages = surroundings(&[ECAM], 0x500, &fake).unwrap().pages;
        assert_eq!(pages, [0x500, 0x580, 0x582, 0x584].map(at));
        fake.function(at(0x500), &sr_iov(0));
        assert_eq!(surroundings(&[ECAM], 0x500, &fake).unwrap().pages, [at(0x500)]);
    }
}
