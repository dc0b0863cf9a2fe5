//! Which functions cannot be kept apart, and so go to one domain together.
//!
//! An SMMU keeps functions apart by StreamID, and an ITS by DeviceID, so functions with one number are one function to
//! them. And requests must reach the SMMU: within a device with several functions, and in a switch, a request may be
//! turned round to another function before. Access Control Services (6.12) prevent that, where they are there and on.
//!
//! | these functions are one group | unless |
//! |---|---|
//! | those with one StreamID at an SMMU, or one DeviceID at an ITS | |
//! | those of one device | each of them has ACS that is on |
//! | those below a root port | the port has ACS that is on |
//! | those below a switch, if one of its downstream ports has no ACS that is on | |
//! | those behind a bridge to conventional PCI, or behind one that is not known | |
//!
//! Root ports of several devices are kept apart without ACS: a root complex that turns requests round between its ports
//! has to have ACS there (Arm BSA, PCI_PP_04).
//!
//! Bridges are members of groups while these are found, but are given to nobody, and are not listed.

use super::ConfigSpace;
use super::function::{Acs, Facts, Port};
use super::regs::{ACS_ISOLATES, ACS_REGISTERS, BRIDGE, BUSES, HEADER_TYPE};
use super::topology::Buses;
use crate::ids::{DeviceId, ItsId, SmmuId};
use alloc::vec::Vec;

/// The functions of a segment, by groups.
#[derive(Debug, Default)]
pub struct Groups {
    /// Endpoints and the numbers of their groups.
    members: Vec<(u16, usize)>,
}

impl Groups {
    /// Finds the groups of all functions that exist in a segment with these ECAMs. `stream` and `device` say how a
    /// requester ID is known to an SMMU and to an ITS.
    ///
    /// A function whose configuration space cannot be understood is as one without any capability.
    pub fn find(
        ecams: &[Buses],
        config: &impl ConfigSpace,
        stream: impl Fn(u16) -> Option<(SmmuId, u32)>,
        device: impl Fn(u16) -> Option<(ItsId, DeviceId)>,
    ) -> Groups {
        let nodes = nodes(ecams, config);
        let mut sets = Sets((0..nodes.len()).collect());
        for (number, node) in nodes.iter().enumerate() {
            for (other, earlier) in nodes.iter().enumerate().take(number) {
                let same_stream = stream(node.rid).is_some_and(|id| stream(earlier.rid) == Some(id));
                let same_device = device(node.rid).is_some_and(|id| device(earlier.rid) == Some(id));
                if same_stream || same_device || node.reaches(earlier) || earlier.reaches(node) {
                    sets.join(number, other);
                }
            }
        }
        let endpoints = nodes.iter().enumerate().filter(|(_, node)| !node.is_bridge);
        Groups { members: endpoints.map(|(number, node)| (node.rid, sets.first(number))).collect() }
    }

    /// The functions that go to one domain with `rid`, itself included; none if it does not exist.
    pub fn of(&self, rid: u16) -> impl Iterator<Item = u16> {
        let group = self.members.iter().find(|(member, _)| *member == rid).map(|&(_, group)| group);
        self.members.iter().filter(move |(_, other)| Some(*other) == group).map(|&(member, _)| member)
    }
}

/// Turns on what a function can do to keep functions apart. What belongs to a domain that does not have the whole group
/// must be kept as it is then; a [`Bridge`](super::bridge::Bridge) keeps it.
pub fn isolate(facts: &mut Facts, config: &impl ConfigSpace) {
    if let Some(acs) = &mut facts.acs {
        acs.control |= acs.capability & ACS_ISOLATES;
        config.write(facts.page.add(acs.at).add(ACS_REGISTERS.saturating_add(2)), 2, acs.control.into());
    }
}

/// A function, as far as groups go.
struct Node {
    rid: u16,
    is_bridge: bool,
    /// It has ACS that is on.
    isolates: bool,
    /// The buses that it may connect without an SMMU: those below it, and with a switch those beside it.
    connects: Option<(u8, u8)>,
    /// With ARI, a bus has one device.
    ari: bool,
}

impl Node {
    fn bus(&self) -> u8 {
        (self.rid >> 8) as u8
    }

    /// Whether requests of the one may reach the other without an SMMU, by what this function does.
    fn reaches(&self, other: &Node) -> bool {
        let is_below = self.connects.is_some_and(|(first, last)| (first..=last).contains(&other.bus()));
        let same_bus = self.bus() == other.bus();
        let same_device = same_bus && (self.ari || self.rid >> 3 == other.rid >> 3);
        is_below || same_device && !self.isolates
    }
}

fn nodes(ecams: &[Buses], config: &impl ConfigSpace) -> Vec<Node> {
    struct Found {
        rid: u16,
        /// For a bridge: the buses behind it.
        behind: Option<(u8, u8)>,
        facts: Option<Facts>,
    }
    let mut all: Vec<Found> = Vec::new();
    for ecam in ecams {
        ecam.visit(config, |rid, page, header| {
            let is_bridge = header & HEADER_TYPE == BRIDGE;
            let [_, secondary, subordinate, _] = config.read32(page.add(BUSES)).to_le_bytes();
            let behind = is_bridge.then_some((secondary, subordinate));
            all.push(Found { rid, behind, facts: Facts::read(rid, page, config).ok() });
            true
        });
    }
    // The buses behind the bridge that leads to a bus.
    let behind_parent = |bus: u8| {
        let mut bridges = all.iter().filter_map(|found| found.behind);
        bridges.find(|&(secondary, _)| secondary != 0 && secondary == bus)
    };
    let node = |Found { rid, behind, facts }: &Found| {
        let isolates = facts.as_ref().and_then(|facts| facts.acs).is_some_and(Acs::isolates);
        let port = facts.as_ref().and_then(|facts| facts.express).map(|express| express.port);
        let numbered = behind.filter(|&(secondary, _)| secondary != 0);
        let connects = numbered.and_then(|behind| match port {
            // It passes requests up and down only; the downstream ports turn them round.
            Some(Port::Upstream) => None,
            Some(Port::Root | Port::Downstream) if isolates => None,
            Some(Port::Downstream) => Some(behind_parent((rid >> 8) as u8).unwrap_or(behind)),
            _ => Some(behind),
        });
        let ari = facts.as_ref().is_some_and(|facts| facts.ari);
        Node { rid: *rid, is_bridge: behind.is_some(), isolates, connects, ari }
    };
    all.iter().map(node).collect()
}

/// Disjoint sets of numbers: each has the number of a member of its set, in the end that of the first.
struct Sets(Vec<usize>);

impl Sets {
    /// The first member of a set. Each step goes to a smaller number.
    fn first(&self, mut number: usize) -> usize {
        while let Some(&next) = self.0.get(number)
            && next != number
        {
            number = next;
        }
        number
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.first(one), self.first(other));
        if let Some(of) = self.0.get_mut(one.max(other)) {
            *of = one.min(other);
        }
    }
}

#[cfg(test)]
mod tests;
