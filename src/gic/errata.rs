//! Errata of GICs, and their workarounds.
//!
//! A part is recognised by its identification register, GICD_IIDR or GITS_IIDR. That is not always enough: 0x0201743b
//! is every GIC-600 of that revision, and only a few machines integrate it incorrectly. Such an erratum also names the
//! machine: by its SoC (DEN 0028, SMCCC_ARCH_SOC_ID), by the vendor in its ACPI tables, or by its device tree's
//! `compatible`.
//!
//! The remedies: direct injection is not used, caches are not assumed to be coherent, entries of translation tables are
//! larger, or all tables are in low memory. An ITS with an erratum that is not worked around is not used. Or nothing is
//! done, because this hypervisor never does what triggers the erratum; the table then says why. docs/errata.md compares
//! the table with that of Linux.

use super::its::IIDR as GITS_IIDR;
use super::layout::{ItsLayout, Layout};
use super::regs::gicd;
use crate::ids::Pa;
use crate::mmio::Hw;
use crate::platform::acpi::Oem;
use core::fmt;

/// The part that an erratum concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The distributor, identified by GICD_IIDR.
    Distributor,
    /// An ITS, identified by GITS_IIDR.
    Its,
}

/// What identifies the machine in addition to the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Only {
    /// The register is sufficient.
    Always,
    /// The SoC, and the least number of chips with redistributors.
    Soc(u32, u32),
    /// A string in the `compatible` of the device tree's root.
    Tree(&'static [&'static str]),
    /// A string in the `compatible` of the device tree's root, or the OEM ID and OEM table ID of the ACPI tables.
    Machine(&'static [&'static str], &'static [u8; 6], &'static [u8; 8]),
}

/// The workaround.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Virtual LPIs are not used: interrupts are injected by EL2.
    NoVirtualLpis,
    /// Tables are cleaned to memory and are not shareable.
    NonCoherent,
    /// Entries of translation tables have at least 16 bytes.
    LargeItes,
    /// The ITS is not used.
    ItsNotUsed,
    /// Nothing: `why` says why none is needed.
    None,
}

/// An erratum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Erratum {
    /// The vendor's name for it.
    pub name: &'static str,
    part: Part,
    iidr: u32,
    mask: u32,
    only: Only,
    /// The workaround.
    pub remedy: Remedy,
    /// What the erratum is, and why the workaround is sufficient.
    pub why: &'static str,
}

impl fmt::Display for Erratum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "erratum {}: {}", self.name, self.why)
    }
}

const ROCKCHIP: &[&str] = &["rockchip,rk3588", "rockchip,rk3588s"];

/// Machines whose GIC reaches the first 4 GiB only, although it says otherwise.
const NARROW: &[&str] =
    &["rockchip,rk3566", "rockchip,rk3568", "renesas,r8a779f0", "renesas,r8a779g0", "renesas,r8a779h0"];

/// The size in bytes of the largest known entry of a translation table.
const LARGE_ITE: u64 = 16;

/// Returns the end of the memory that the machine's GIC reaches, if it is less than the GIC says. `is_compatible` is
/// whether the `compatible` of the device tree's root contains a string. All tables are in EL2's pool, so the pool has to
/// be below.
#[must_use]
pub fn memory_end(is_compatible: impl Fn(&str) -> bool) -> Option<Pa> {
    NARROW.iter().any(|word| is_compatible(word)).then_some(Pa(1 << 32))
}

/// All errata that are known.
pub const TABLE: &[Erratum] = &[
    Erratum {
        name: "ARM GIC-700 2941627 (r0, r1)",
        part: Part::Distributor,
        iidr: 0x0400_043b,
        mask: 0xff0e_0fff,
        only: Only::Always,
        remedy: Remedy::None,
        why: "a deactivation does not wake a sleeping redistributor; redistributors are never put to sleep",
    },
    Erratum {
        name: "ARM GIC-700 2941627 (r2)",
        part: Part::Distributor,
        iidr: 0x0402_043b,
        mask: 0xff0f_0fff,
        only: Only::Always,
        remedy: Remedy::None,
        why: "a deactivation does not wake a sleeping redistributor; redistributors are never put to sleep",
    },
    Erratum {
        name: "NVIDIA T241-FABRIC-4",
        part: Part::Distributor,
        iidr: 0x0402_043b,
        mask: 0xffff_ffff,
        only: Only::Soc(0x036b_0241, 3),
        remedy: Remedy::NoVirtualLpis,
        why: "with more than two chips GICv4 commands may corrupt the GIC; direct injection stays off",
    },
    Erratum {
        name: "Cavium 38539",
        part: Part::Distributor,
        iidr: 0xa000_034c,
        mask: 0xe8f0_0fff,
        only: Only::Always,
        remedy: Remedy::None,
        why: "GICD_TYPER2 cannot be read; it is read only on GICv4.1",
    },
    Erratum {
        name: "Rockchip 3568002, Renesas R-Car generation 4",
        part: Part::Its,
        iidr: 0x0201_743b,
        mask: 0xffff_ffff,
        only: Only::Tree(NARROW),
        remedy: Remedy::None,
        why: "the GIC reaches the first 4 GiB only; the hypervisor's memory is there",
    },
    Erratum {
        name: "Qualcomm QDF2400 0065",
        part: Part::Its,
        iidr: 0x0000_1070,
        mask: 0xffff_ffff,
        only: Only::Always,
        remedy: Remedy::LargeItes,
        why: "an entry of a translation table has 16 bytes, more than the ITS says",
    },
    Erratum {
        name: "Cavium 22375, 24313, 23144",
        part: Part::Its,
        iidr: 0xa100_034c,
        mask: 0xffff_0fff,
        only: Only::Always,
        remedy: Remedy::ItsNotUsed,
        why: "device tables have other sizes than it says, and commands to the other node hang; this ITS is not used",
    },
    Erratum {
        name: "HiSilicon 161600802 (Hip07)",
        part: Part::Its,
        iidr: 0x0000_0004,
        mask: 0xffff_ffff,
        only: Only::Always,
        remedy: Remedy::NoVirtualLpis,
        why: "vPE commands need another address than the redistributor's; direct injection stays off",
    },
    Erratum {
        name: "HiSilicon 162100801 (Hip09)",
        part: Part::Its,
        iidr: 0x0005_1736,
        mask: 0xffff_ffff,
        only: Only::Always,
        remedy: Remedy::NoVirtualLpis,
        why: "a vPE that moves leaves stale state behind; direct injection stays off",
    },
    Erratum {
        name: "Rockchip 3588001",
        part: Part::Distributor,
        iidr: 0x0201_743b,
        mask: 0xffff_ffff,
        only: Only::Machine(ROCKCHIP, b"RKCP  ", b"RK3588  "),
        remedy: Remedy::NonCoherent,
        why: "the redistributors claim to be cache-coherent and are not",
    },
    Erratum {
        name: "Rockchip 3588001",
        part: Part::Its,
        iidr: 0x0201_743b,
        mask: 0xffff_ffff,
        only: Only::Machine(ROCKCHIP, b"RKCP  ", b"RK3588  "),
        remedy: Remedy::NonCoherent,
        why: "the ITS claims to be cache-coherent and is not",
    },
];

/// What identifies the machine, apart from its GIC.
#[derive(Clone, Copy)]
pub struct Identity<'a> {
    /// SMCCC_ARCH_SOC_ID, version: JEP-106 code in bits 30:16, the vendor's SoC number in bits 15:0.
    pub soc: Option<u32>,
    /// The OEM in the ACPI tables.
    pub oem: Option<Oem>,
    /// Whether the `compatible` of the device tree's root contains a string.
    pub is_compatible: &'a dyn Fn(&str) -> bool,
}

/// The errata of a part.
pub fn of<'a>(
    part: Part,
    iidr: u32,
    identity: Identity<'a>,
    redists: &'a [(crate::ids::Pa, u64)],
) -> impl Iterator<Item = &'static Erratum> + 'a {
    TABLE.iter().filter(move |line| {
        line.part == part
            && iidr & line.mask == line.iidr
            && match line.only {
                Only::Always => true,
                Only::Soc(soc, least) => identity.soc == Some(soc) && chips(redists) >= least,
                Only::Tree(words) => words.iter().any(|word| (identity.is_compatible)(word)),
                Only::Machine(words, id, table) => {
                    words.iter().any(|word| (identity.is_compatible)(word))
                        || identity.oem == Some(Oem { id: *id, table: *table })
                }
            }
    })
}

/// The number of chips of a T241, from the address bits that hold the chip number.
fn chips(redists: &[(crate::ids::Pa, u64)]) -> u32 {
    redists.iter().fold(0u32, |seen, (base, _)| seen | 1 << (base.0 >> 44 & 0b11)).count_ones()
}

/// Reads the identification registers, reports each erratum to `each` (with the ITS's index if it concerns an ITS), and
/// changes the layout accordingly. It accesses only frames that `Gic::discover` accesses as well.
pub fn apply(
    hw: &impl Hw,
    layout: &mut Layout<'_>,
    itss: &mut [ItsLayout],
    identity: Identity<'_>,
    mut each: impl FnMut(Option<usize>, &'static Erratum),
) {
    let redists = layout.redists;
    for erratum in of(Part::Distributor, hw.read32(layout.dist.add(gicd::IIDR)), identity, redists) {
        each(None, erratum);
        match erratum.remedy {
            Remedy::NoVirtualLpis => layout.virtual_lpis_wanted = false,
            Remedy::NonCoherent => layout.coherent = false,
            Remedy::LargeItes | Remedy::ItsNotUsed | Remedy::None => {}
        }
    }
    for (n, its) in itss.iter_mut().enumerate() {
        for erratum in of(Part::Its, hw.read32(its.base.add(GITS_IIDR)), identity, redists) {
            each(Some(n), erratum);
            match erratum.remedy {
                Remedy::NoVirtualLpis => layout.virtual_lpis_wanted = false,
                Remedy::NonCoherent => its.coherent = false,
                Remedy::LargeItes => its.least_ite = LARGE_ITE,
                Remedy::ItsNotUsed => its.is_used = false,
                Remedy::None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gic::Gic;
    use crate::gic::testing::{Described, ModelHw};
    use crate::ids::EventKey;
    use crate::ids::{CpuId, DeviceId, EventId, ItsId, Pa};
    use gic_model::{Config, Machine};
    use std::vec::Vec;

    fn no_match(_: &str) -> bool {
        false
    }

    const UNKNOWN: Identity<'static> = Identity { soc: None, oem: None, is_compatible: &no_match };

    fn names(part: Part, iidr: u32, identity: Identity<'_>, redists: &[(Pa, u64)]) -> Vec<&'static str> {
        of(part, iidr, identity, redists).map(|line| line.name).collect()
    }

    /// The errata that were reported, with the index of an ITS.
    type Known = Vec<(Option<usize>, &'static str)>;

    /// The driver on a model of `config` with the errata applied, and the errata.
    fn discovered(config: Config, identity: Identity<'_>) -> (Machine, Gic<ModelHw>, Known) {
        let described = Described::new(&config);
        let cpus = config.cpus.len();
        let machine = Machine::new(config);
        let hw = ModelHw::new(machine.clone());
        let mut layout = described.layout();
        let mut itss = layout.itss.to_vec();
        let mut known = Known::new();
        apply(&hw, &mut layout, &mut itss, identity, |its, erratum| known.push((its, erratum.name)));
        let gic = Gic::discover(hw, &Layout { itss: &itss, ..layout }).unwrap();
        crate::gic::testing::reserve(&gic);
        (0..cpus).for_each(|cpu| gic.init_cpu(CpuId(cpu as u16)).unwrap());
        (machine, gic, known)
    }

    /// A device's interrupt arrives as a physical LPI.
    fn takes_physical_lpis(machine: &Machine, gic: &Gic<ModelHw>) {
        let (its, device, event) = (ItsId(0), DeviceId(7), EventId(1));
        gic.map_device(its, device, 4).unwrap();
        let lpi = gic.alloc_lpi().unwrap();
        gic.configure_lpi(lpi, 0xa0, true);
        gic.map_physical(EventKey::new(its, device, event), lpi, CpuId(1)).unwrap();
        machine.msi_at(0, 7, 1);
        assert_eq!(machine.host_ack(1), Some(lpi.0));
        machine.assert_clean();
    }

    #[test]
    fn ordinary_gics_have_no_errata() {
        for iidr in [0x0300_043b, 0x0201_743b, 0x0403_043b, 0] {
            assert!(names(Part::Distributor, iidr, UNKNOWN, &[]).is_empty(), "{iidr:#x}");
        }
        assert!(names(Part::Its, 0x0201_743b, UNKNOWN, &[]).is_empty());
        // The identification of an ITS means nothing for a distributor.
        assert!(names(Part::Distributor, 4, UNKNOWN, &[]).is_empty());
        let (_, gic, known) = discovered(Config::v4_1(2, 1), UNKNOWN);
        assert!(known.is_empty() && gic.facts().v41);
    }

    #[test]
    fn gic_700_is_recognised_by_its_revision() {
        for iidr in [0x0400_043b, 0x0401_043b, 0x0400_143b, 0x0402_043b, 0x0402_343b] {
            assert_eq!(names(Part::Distributor, iidr, UNKNOWN, &[]).len(), 1, "{iidr:#x}");
        }
        let mut config = Config::graviton3(4);
        config.iidr = 0x0401_043b;
        let (_, gic, known) = discovered(config, UNKNOWN);
        assert_eq!(known, [(None, "ARM GIC-700 2941627 (r0, r1)")]);
        // Direct injection is not affected.
        assert!(gic.facts().virtual_lpis);
    }

    #[test]
    fn a_t241_of_three_or_more_chips_does_not_use_direct_injection() {
        let identity = Identity { soc: Some(0x036b_0241), ..UNKNOWN };
        let chips = |count: u64| (0..count).map(|chip| (Pa(chip << 44 | 0x2200_0000), 0x10_0000)).collect::<Vec<_>>();
        let has = |identity, count| {
            names(Part::Distributor, 0x0402_043b, identity, &chips(count)).contains(&"NVIDIA T241-FABRIC-4")
        };
        assert!(has(identity, 3) && has(identity, 4));
        assert!(!has(identity, 2) && !has(UNKNOWN, 4));
        assert!(!names(Part::Distributor, 0x0402_143b, identity, &chips(4)).contains(&"NVIDIA T241-FABRIC-4"));

        let mut config = Config::v4_1(4, 1).each_cpu(|n, cpu| cpu.gicr = (n as u64) << 44 | 0x2200_0000);
        config.iidr = 0x0402_043b;
        let (machine, gic, known) = discovered(config, identity);
        assert!(known.contains(&(None, "NVIDIA T241-FABRIC-4")));
        assert!(!gic.facts().virtual_lpis && gic.v4().is_none());
        takes_physical_lpis(&machine, &gic);
    }

    #[test]
    fn itss_of_hip07_and_hip09_are_used_for_physical_lpis_only() {
        for (config, iidr, name) in [
            (Config::v4_0(2), 0x0000_0004, "HiSilicon 161600802 (Hip07)"),
            (Config::v4_1(2, 1), 0x0005_1736, "HiSilicon 162100801 (Hip09)"),
        ] {
            let (machine, gic, known) = discovered(config.each_its(|_, its| its.iidr = iidr), UNKNOWN);
            assert_eq!(known, [(Some(0), name)]);
            assert!(gic.v4().is_none());
            takes_physical_lpis(&machine, &gic);
        }
    }

    #[test]
    fn tables_of_a_gic_that_reaches_4_gib_are_below() {
        let end = |name: &str| memory_end(|word| word == name);
        for name in ["rockchip,rk3566", "rockchip,rk3568", "renesas,r8a779f0", "renesas,r8a779g0", "renesas,r8a779h0"] {
            assert_eq!(end(name), Some(Pa(1 << 32)), "{name}");
            let is_it = |word: &str| word == name;
            let identity = Identity { is_compatible: &is_it, ..UNKNOWN };
            assert_eq!(names(Part::Its, 0x0201_743b, identity, &[]).len(), 1, "{name}");
            assert!(names(Part::Its, 0x0300_043b, identity, &[]).is_empty());
        }
        assert_eq!((end("rockchip,rk3588"), end("linux,dummy-virt")), (None, None));
    }

    #[test]
    fn translation_tables_of_a_qdf2400_have_entries_of_16_bytes() {
        let reserved = |iidr: u32| {
            let (machine, gic, known) = discovered(Config::gicv3(2).each_its(|_, its| its.iidr = iidr), UNKNOWN);
            takes_physical_lpis(&machine, &gic);
            (known, gic.itss[0].as_ref().map(|its| its.itt_entry()))
        };
        let (known, size) = reserved(0x0000_1070);
        assert_eq!((known, size), (std::vec![(Some(0), "Qualcomm QDF2400 0065")], Some(16)));
        let (known, size) = reserved(0x0000_1071);
        assert!(known.is_empty() && size.is_some_and(|size| size < 16));
    }

    #[test]
    fn an_its_whose_errata_are_not_worked_around_is_not_used_and_the_others_are() {
        let config = Config::gicv3(2).each_its(|_, its| its.iidr = 0xa100_334c);
        let described = Described::new(&config);
        let machine = Machine::new(config);
        let hw = ModelHw::new(machine.clone());
        let mut layout = described.layout();
        let mut itss = layout.itss.to_vec();
        let mut known = Vec::new();
        apply(&hw, &mut layout, &mut itss, UNKNOWN, |its, erratum| known.push((its, erratum.name)));
        assert_eq!(known[0], (Some(0), "Cavium 22375, 24313, 23144"));
        let gic = Gic::discover(hw, &Layout { itss: &itss, ..layout }).unwrap();
        assert!(gic.facts().its(ItsId(0)).is_none());
        // It was stopped, as any other.
        machine.assert_clean();
    }

    #[test]
    fn a_gic_600_is_not_coherent_only_on_rk3588() {
        let mut config = Config::gicv3(2).each_its(|_, its| its.iidr = 0x0201_743b);
        config.iidr = 0x0201_743b;
        let rk3588 = |word: &str| word == "rockchip,rk3588";
        let by_tree = Identity { is_compatible: &rk3588, ..UNKNOWN };
        let by_acpi = Identity { oem: Some(Oem { id: *b"RKCP  ", table: *b"RK3588  " }), ..UNKNOWN };
        let another = Identity { oem: Some(Oem { id: *b"RKCP  ", table: *b"RK356X  " }), ..UNKNOWN };
        for (identity, coherent) in [(UNKNOWN, true), (another, true), (by_tree, false), (by_acpi, false)] {
            // The model rejects wrong attributes, and detects every cache line that is not cleaned.
            let config = if coherent { config.clone() } else { config.clone().noncoherent() };
            let (machine, gic, known) = discovered(config, identity);
            assert_eq!(known.is_empty(), coherent);
            assert_eq!(gic.facts().its(ItsId(0)).unwrap().coherent, coherent);
            takes_physical_lpis(&machine, &gic);
        }
    }

    #[test]
    fn gicd_typer2_of_a_thunderx_is_never_read() {
        struct NoTyper2(ModelHw, Pa);
        impl Clone for NoTyper2 {
            fn clone(&self) -> Self {
                NoTyper2(self.0.clone(), self.1)
            }
        }
        impl Hw for NoTyper2 {
            fn read32(&self, at: Pa) -> u32 {
                assert_ne!(at, self.1, "GICD_TYPER2 was read");
                self.0.read32(at)
            }
            fn write32(&self, at: Pa, value: u32) {
                self.0.write32(at, value);
            }
            fn read64(&self, at: Pa) -> u64 {
                self.0.read64(at)
            }
            fn write64(&self, at: Pa, value: u64) {
                self.0.write64(at, value);
            }
            fn alloc(&self, size: usize, align: usize) -> Option<Pa> {
                self.0.alloc(size, align)
            }
            fn free(&self, memory: Pa, size: usize, align: usize) {
                self.0.free(memory, size, align);
            }
            fn load8(&self, at: Pa) -> u8 {
                self.0.load8(at)
            }
            fn store8(&self, at: Pa, value: u8) {
                self.0.store8(at, value);
            }
            fn load64(&self, at: Pa) -> u64 {
                self.0.load64(at)
            }
            fn store64(&self, at: Pa, value: u64) {
                self.0.store64(at, value);
            }
            fn publish(&self, memory: Pa, size: usize, coherence: crate::mmio::Coherence) {
                self.0.publish(memory, size, coherence);
            }
            fn acquire(&self, memory: Pa, size: usize, coherence: crate::mmio::Coherence) {
                self.0.acquire(memory, size, coherence);
            }
            fn now_us(&self) -> u64 {
                self.0.now_us()
            }
            fn relax(&self) {
                self.0.relax();
            }
        }
        for iidr in [0xa000_034c, 0xa100_034c, 0xa200_f34c] {
            assert_eq!(names(Part::Distributor, iidr, UNKNOWN, &[]), ["Cavium 38539"], "{iidr:#x}");
        }
        let mut config = Config::gicv3(2);
        config.iidr = 0xa100_034c;
        let described = Described::new(&config);
        let typer2 = Pa(config.gicd + 0xc);
        let hw = NoTyper2(ModelHw::new(Machine::new(config)), typer2);
        let gic = Gic::discover(hw, &described.layout()).unwrap();
        gic.init_cpu(CpuId(0)).unwrap();
    }
}
