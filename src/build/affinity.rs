//! The affinities of dom0's vCPUs.
//!
//! vCPU n has the affinity of the CPU that it is placed on, so that a direct-mapped domain sees the machine as it is.
//! vCPUs beyond the number of CPUs get affinities that no CPU has, in the same clusters, with Aff0 up to 15: the target
//! list of an SGI reaches these without range selector (IHI 0069, ICC_SGI1R_EL1).

use crate::ids::Mpidr;
use alloc::vec::Vec;

/// Number of Aff0 values that a target list reaches.
const PER_CLUSTER: u64 = 16;

/// Returns `count` affinities: those of `own`, followed by free ones where `own` has fewer.
#[must_use]
pub fn for_vcpus(own: &[Mpidr], count: usize) -> Vec<Mpidr> {
    let mut all: Vec<Mpidr> = own.iter().copied().take(count).collect();
    // Free affinities have Aff3 and Aff2 of the first CPU. Aff1 and Aff0 count up from 0.
    let base = own.first().map_or(0, |first| first.0 & 0xff_0000_0000) | own.first().map_or(0, |m| m.0 & 0xff_0000);
    let free = (0..=0xff)
        .flat_map(|cluster| (0..PER_CLUSTER).map(move |cpu| Mpidr(base | cluster << 8 | cpu)))
        .filter(|affinity| !own.contains(affinity));
    let missing = count.saturating_sub(all.len());
    all.extend(free.take(missing));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_beyond_the_cpus_get_free_affinities() {
        let own = [Mpidr(0), Mpidr(1), Mpidr(2), Mpidr(0x100)];
        let all = for_vcpus(&own, 20);
        assert_eq!(all[..4], own);
        assert_eq!(all[4..6], [Mpidr(3), Mpidr(4)]);
        assert_eq!(all[16], Mpidr(15));
        assert_eq!(all[17], Mpidr(0x101), "0x100 is taken");
        let mut sorted = all.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(sorted.len(), 20);
        assert_eq!(for_vcpus(&own, 2), own[..2]);
    }

    #[test]
    fn free_affinities_have_the_machines_aff3_and_aff2() {
        let all = for_vcpus(&[Mpidr(0x81_0002_0300)], 3);
        assert_eq!(all[1..], [Mpidr(0x81_0002_0000), Mpidr(0x81_0002_0001)]);
    }
}
