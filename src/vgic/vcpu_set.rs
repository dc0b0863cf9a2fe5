//! Sets of vCPUs that fit on the stack.

use super::config::MAX_VCPUS;
use crate::ids::VcpuId;
use crate::util::bit_set::BitSet;

const WORDS: usize = MAX_VCPUS / 64;

/// A set of vCPUs of one domain.
#[derive(Clone, Default)]
pub(super) struct VcpuSet(BitSet<WORDS>);

impl VcpuSet {
    pub fn new() -> VcpuSet {
        VcpuSet::default()
    }

    /// The first `count` vCPUs.
    pub fn first(count: usize) -> VcpuSet {
        let mut set = VcpuSet::new();
        for vcpu in 0..count.min(MAX_VCPUS) {
            set.insert(VcpuId(vcpu as u16));
        }
        set
    }

    pub fn insert(&mut self, vcpu: VcpuId) {
        self.0.add(vcpu.index());
    }

    pub fn remove(&mut self, vcpu: VcpuId) {
        self.0.remove(vcpu.index());
    }

    pub fn iter(&self) -> impl Iterator<Item = VcpuId> + '_ {
        self.0.iter().map(|vcpu| VcpuId(vcpu as u16))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inserted_vcpus_are_iterated_in_order() {
        let mut set = VcpuSet::new();
        for vcpu in [300, 0, 63, 64, 511, 512] {
            set.insert(VcpuId(vcpu));
        }
        set.remove(VcpuId(64));
        let all: std::vec::Vec<u16> = set.iter().map(|v| v.0).collect();
        assert_eq!(all, [0, 63, 300, 511]);
        assert_eq!(VcpuSet::first(3).iter().count(), 3);
    }
}
