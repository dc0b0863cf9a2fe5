//! What vCPUs read as their affinity.
//!
//! A vCPU with a CPU of its own has that CPU's affinity, so that a direct-mapped domain sees the machine as it is.
//! Those beyond get one that no CPU has, in the same clusters: Aff0 up to 15, which an SGI's target list reaches
//! (IHI 0069, ICC_SGI1R_EL1, without range selector).

use crate::ids::Mpidr;
use alloc::vec::Vec;

/// Aff0 values that a target list reaches.
const PER_CLUSTER: u64 = 16;

/// `own`, cut or continued to `count` affinities.
#[must_use]
pub fn for_vcpus(own: &[Mpidr], count: usize) -> Vec<Mpidr> {
    let mut all: Vec<Mpidr> = own.iter().copied().take(count).collect();
    // Aff3.Aff2 of the first CPU; then Aff1 and Aff0 upwards.
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
    fn the_first_have_their_cpus_and_the_rest_what_is_free() {
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
    fn the_upper_affinities_are_the_machines() {
        let all = for_vcpus(&[Mpidr(0x81_0002_0300)], 3);
        assert_eq!(all[1..], [Mpidr(0x81_0002_0000), Mpidr(0x81_0002_0001)]);
    }
}
