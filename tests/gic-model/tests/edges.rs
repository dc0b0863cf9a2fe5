//! Access widths, alignment, reserved registers and layout of tables. Also a test that nothing software writes makes
//! the model panic.

mod common;

use common::*;
use gic_model::{Config, Fault, Machine};

const V: u32 = LPI + 5;

#[test]
fn an_access_of_the_wrong_width_is_a_violation() {
    let b = Bench::up41(Config::v4_1(1, 1));
    let (d, r, i) = (b.c.gicd, rd_base(&b.c, 0), b.c.its[0].base);
    for (at, section) in [
        (d + 8, "12.9 GICD"),
        (r, "12.11 GICR"),
        (r + 0x1_0080, "12.11 GICR, SGI frame"),
        (r + 0x2_0088, "12.11 GICR_VSGIPENDR"),
        (i, "12.18 GITS"),
    ] {
        let _ = b.m.read64(at);
        b.expect(section);
    }
    for (at, section) in [
        (d + 8, "12.9 GICD"),
        (r, "12.11 GICR"),
        (r + 0x1_0080, "12.11 GICR, SGI frame"),
        (r + 0x2_0080, "12.11 GICR_VSGIR"),
        (i, "12.19 GITS_CTLR"),
    ] {
        b.m.write64(at, 0);
        b.expect(section);
    }
    b.m.write32(r + 0xa0, LPI);
    b.expect("12.11 GICR_INVLPIR");
    b.m.write32(i + 0x2_0020, 0);
    b.expect("12.19 GITS_SGIR");
    // The halves of 64-bit registers can be read and, where that is useful, written alone.
    let typer = b.m.read64(i + 8);
    assert_eq!(u64::from(b.m.read32(i + 8)) | u64::from(b.m.read32(i + 12)) << 32, typer);
    b.m.write64(d + 0x6100, 0x1_0000_0002);
    assert_eq!((b.m.read64(d + 0x6100), b.m.read32(d + 0x6104)), (0x1_0000_0002, 1));
    b.m.assert_clean();
}

#[test]
fn unaligned_accesses_and_accesses_to_unused_addresses_are_violations() {
    let m = Machine::new(Config::gicv3(1));
    let a = m.alloc(4096, 4096).expect("memory");
    let count = |n: usize| assert_eq!(m.take_violations().len(), n);
    let _ = m.read32(0x2f00_0002);
    m.write32(0x2f00_0002, 0);
    let _ = m.read64(0x2f00_0004);
    m.write64(0x2f00_0004, 0);
    count(4);
    m.write32(0x1000, 0);
    let _ = m.load64(a + 4);
    m.store64(a + 4, 0);
    count(3);
    let _ = m.load8(0x1000);
    m.store8(0x1000, 0);
    m.publish(a, 4097, false);
    m.acquire(a, 4097, false);
    count(4);
    m.store64(a, 0x1122_3344_5566_7788);
    assert_eq!((m.load64(a), m.load8(a), m.load8(a + 7)), (0x1122_3344_5566_7788, 0x88, 0x11));
    count(0);
    assert!(m.alloc(0, 1).is_none());
    m.free(a, 4096, 4096);
    assert!(m.allocations().is_empty());
}

#[test]
fn writes_to_reserved_frames_and_registers_are_violations() {
    let b = Bench::up41(Config::v4_1(1, 1));
    b.m.write32(rd_base(&b.c, 0) + 0x3_0000, 0);
    b.expect("12.10 GICR");
    let i = b.c.its[0].base;
    let _ = b.m.read32(i + 0x1_0040);
    b.expect("12.19 GITS_TRANSLATER");
    b.m.write32(i + 0x1_0044, 0);
    b.expect("12.19 GITS_TRANSLATER");
    b.m.write32(i + 0x2_0024, 0);
    b.expect("12.19 GITS_SGIR");
    b.m.write64(i + 0x90, 0x20);
    assert_eq!(b.m.read64(i + 0x90), b.m.read64(i + 0x88), "read-only");
    b.m.assert_clean();
}

#[test]
fn a_write_while_rwp_is_1_is_a_violation() {
    let b = Bench::up(Config::gicv3(1));
    b.m.write32(b.c.gicd, 0);
    assert_eq!(b.m.read32(b.c.gicd) >> 31, 1);
    b.m.write32(b.c.gicd, 2);
    b.expect("12.9 GICD_CTLR");
    b.m.advance_us(5);
    assert_eq!(b.m.read32(b.c.gicd) >> 31, 0);
    let r = rd_base(&b.c, 0);
    b.m.write32(r, 0);
    assert_eq!(b.m.read32(r) & 8, 8);
    b.m.write32(r, 1);
    b.expect("12.11 GICR_CTLR");
}

#[test]
fn lpi_tables_must_fit_idbits_and_be_aligned_allocated_and_published() {
    let b = Bench::raw(Config::gicv3(1));
    let r = rd_base(&b.c, 0);
    let (prop, pend) = (b.memory(0x1_0000, 0x1_0000), b.memory(0x1_0000, 0x1_0000));
    let on = |idbits: u64, prop: u64| {
        b.m.write64(r + 0x70, prop | SHARED | idbits);
        b.m.write64(r + 0x78, pend | SHARED);
        b.m.write32(r, 1);
        b.m.write32(r, 0);
        b.m.advance_us(5);
    };
    on(15, prop);
    b.m.assert_clean();
    on(12, prop);
    b.expect("12.11 GICR_PROPBASER");
    on(16, prop);
    b.expect("12.11 GICR_PROPBASER");
    on(15, 0x1000_0000);
    b.expect("12.11 GICR_PROPBASER");
    b.m.write64(r + 0x78, pend | 0x1000);
    b.expect("12.11 GICR_PENDBASER");
    let fresh = b.m.alloc(0x1_0000, 0x1_0000).expect("memory");
    b.m.write64(r + 0x70, prop | SHARED | 15);
    b.m.write64(r + 0x78, fresh | SHARED);
    b.m.write32(r, 1);
    b.expect("12.11 GICR_PENDBASER");
}

#[test]
fn direct_registers_need_enabled_lpis_and_the_intid_of_an_lpi() {
    let b = Bench::up(Config::gicv3(1));
    let r = rd_base(&b.c, 0);
    b.m.write64(r + 0xa0, 1 << 48 | u64::from(LPI));
    b.expect("12.11 GICR_INVLPIR");
    b.m.advance_us(2);
    b.m.write64(r + 0xa0, 77);
    b.expect("12.11 GICR_INVLPIR");
    b.m.store8(b.propbase + 1, 1);
    b.m.write64(r + 0x40, u64::from(LPI) + 1);
    b.expect("5.1.1 LPI configuration tables");
    b.m.write32(r, 0);
    b.m.advance_us(2);
    b.m.write64(r + 0x40, LPI.into());
    b.expect("12.11 GICR_SETLPIR");
}

#[test]
fn an_its_is_enabled_only_when_quiescent_and_with_a_queue() {
    let b = Bench::raw(Config::gicv3(1));
    let i = b.c.its[0].base;
    b.m.write32(i, 1);
    b.expect("12.19 GITS_CTLR");
    b.m.write32(i, 0);
    b.m.write32(i, 1);
    assert!(b.m.take_violations().iter().any(|v| v.what.contains("before the ITS was quiescent")));
    b.m.write32(i, 0);
    b.m.advance_us(5);
    b.m.write64(i + 0x80, VALID | 0x1_1000);
    b.expect("12.19 GITS_CBASER");
    b.m.write64(i + 0x80, VALID | 0x1_0000);
    b.m.write32(i, 1);
    b.expect("12.19 GITS_CBASER");
    let b = Bench::up(Config::its_list(1, 1));
    b.m.write32(b.c.its[0].base, 0x51);
    b.expect("12.19 GITS_CTLR");
    assert_eq!(b.m.read32(b.c.its[0].base) & 0xf0, 0);
}

#[test]
fn its_tables_must_be_aligned_disjoint_and_valid() {
    let b = Bench::raw(Config::gicv3(1));
    let i = b.c.its[0].base;
    let table = b.memory(0x2_0000, 0x1_0000);
    b.m.write64(i + 0x80, VALID | b.memory(0x1_0000, 0x1_0000) | SHARED | 0xf);
    let on = |zero: u64, one: u64| {
        b.m.write64(i + 0x100, zero);
        b.m.write64(i + 0x108, one);
        b.m.write32(i, 1);
        b.m.write32(i, 0);
        b.m.advance_us(5);
    };
    on(VALID | table | SHARED | 2 << 8, 0);
    b.m.assert_clean();
    on(VALID | (table + 0x4000) | SHARED | 1 << 8, 0);
    b.m.assert_clean();
    on(VALID | (table + 0x1000) | SHARED | 1 << 8, 0);
    b.expect("12.19 GITS_BASER<n>");
    on(VALID | table | SHARED | 2 << 8, VALID | table | SHARED | 2 << 8);
    b.expect("12.19 GITS_BASER<n>");
    // MAPD fails without a device table, and if the first level does not refer to memory.
    b.m.write64(i + 0x100, 0);
    b.m.write32(i, 1);
    b.run(0, &[mapd(1, 4, b.memory(4096, 4096))]);
    b.expect("5.3 MAPD");
    b.m.write32(i, 0);
    b.m.advance_us(5);
    let l1 = b.memory(4096, 4096);
    b.m.store64(l1, VALID | 0x1000_0000);
    b.m.publish(l1, 8, false);
    b.m.write64(i + 0x100, VALID | 1 << 62 | l1 | SHARED);
    b.m.write32(i, 1);
    let _ = b.m.take_violations();
    b.run(0, &[mapd(1, 4, b.memory(4096, 4096))]);
    assert!(b.m.take_violations().iter().all(|v| v.section == "5.3 MAPD"));
    assert!(b.m.read64(i + 0x90) & 1 == 0);
}

#[test]
fn an_its_keeps_the_mappings_in_its_tables_and_loses_them_with_another_table() {
    let b = Bench::up(Config::gicv3(1));
    let i = b.c.its[0].base;
    b.set_config(LPI, 0xa1);
    b.device(0, 5);
    let at_home = sync(b.rdbase(0, 0));
    b.run(0, &[mapti(5, 1, LPI, 0), at_home]);
    let stop = || {
        b.m.write32(i, 0);
        b.m.advance_us(5);
    };
    stop();
    b.m.msi(5, 1);
    assert_eq!(b.m.host_ack(0), None);
    b.m.write32(i, 1);
    b.m.msi(5, 1);
    assert_eq!(b.m.host_ack(0), Some(LPI), "the same tables");
    stop();
    b.m.write64(i + 0x100, VALID | b.memory(0x1_0000, 0x1_0000) | SHARED | 2 << 8);
    b.m.write32(i, 1);
    b.m.msi(5, 1);
    assert_eq!(b.m.host_ack(0), None, "another device table");
    b.m.assert_clean();
    b.run(0, &[int(5, 1)]);
    b.expect("5.3 INT");
}

#[test]
fn a_collection_needs_an_icid_in_range_and_a_cpu_with_enabled_lpis() {
    let b = Bench::up(Config::graviton3(1).each_its(|_, i| i.collection_bits = 4));
    b.run(0, &[mapc(15, b.rdbase(0, 0)), sync(b.rdbase(0, 0))]);
    b.m.assert_clean();
    b.run(0, &[mapc(16, b.rdbase(0, 0))]);
    b.expect("5.3 MAPC");
    b.m.write32(rd_base(&b.c, 0), 0);
    b.m.advance_us(5);
    b.run(0, &[mapc(3, b.rdbase(0, 0))]);
    b.expect("5.3 MAPC");
}

#[test]
fn collections_held_in_the_its_need_no_table() {
    let c = Config::gicv3(1).each_its(|_, i| {
        i.hcc = 2;
        i.basers[1] = None;
    });
    let b = Bench::up(c);
    b.run(0, &[mapc(1, b.rdbase(0, 0))]);
    b.m.assert_clean();
    b.run(0, &[mapc(2, b.rdbase(0, 0))]);
    b.expect("5.3 MAPC");
}

#[test]
fn virtual_configuration_must_be_published_before_it_is_read() {
    let b = Bench::up(Config::v4_0(1));
    let (vconf, vpt) = (b.m.alloc(0x2000, 0x1_0000).expect("memory"), b.vpt());
    b.m.write64(b.vlpi(0) + 0x70, 13);
    b.device(0, 5);
    b.run(0, &[vmapp(0, b.rdbase(0, 0), vpt), vsync(0)]);
    b.enter(0, vpt, vconf);
    b.m.assert_clean();
    b.run(0, &[vmapti(5, 1, 0, V, 1023)]);
    b.expect("5.1 virtual LPI configuration tables");
}

#[test]
fn a_vpt_must_not_overlap_and_a_resident_vpe_is_mapped_to_its_cpu() {
    let b = Bench::up(Config::v4_0(2));
    let (vconf, big) = (b.vconf(), b.memory(0x1_0000, 0x1_0000));
    b.run(0, &[mapd(6, 4, big + 0x100)]);
    b.run(0, &[vmapp(0, b.rdbase(0, 0), big)]);
    b.expect("5.3 VMAPP");
    let vpt = b.vpt();
    b.enter(1, vpt, vconf);
    b.run(0, &[vmapp(1, b.rdbase(0, 0), vpt)]);
    b.expect("5.3 VMAPP");
}

#[test]
fn vmovi_to_a_vpe_with_too_few_vintid_bits_is_a_violation() {
    let b = Bench::up(Config::v4_0(1));
    (0..1).for_each(|cpu| b.m.write64(b.vlpi(cpu) + 0x70, 15));
    b.device(0, 5);
    let large = [0x29, 0, VALID | b.rdbase(0, 0), b.vpt() | 15];
    b.run(0, &[large, vsync(0), vmapp(1, b.rdbase(0, 0), b.vpt()), vsync(1)]);
    b.run(0, &[vmapti(5, 1, 0, 40_000, 1023), vsync(0)]);
    b.m.assert_clean();
    b.run(0, &[vmovi(5, 1, 1, None)]);
    b.expect("5.3 VMOVI");
}

#[test]
fn a_gicv4_1_redistributor_only_handles_vpes_in_its_vpe_table() {
    let b = Bench::up41(Config::graviton3(4));
    let vconf = b.vconf();
    b.run(0, &[vmapp41(3, b.rdbase(0, 0), b.vpt(), vconf, 1023, 0x100), vsync(3)]);
    b.m.write32(b.vlpi(3) + 0x80, 3);
    b.expect("12.11 GICR_VSGIR");
    b.m.write64(rd_base(&b.c, 0) + 0xa0, VALID | 3 << 32 | 77);
    b.expect("12.11 GICR_INVLPIR");
    // The vPE moves to the other group, whose redistributors need a table with an entry for it.
    b.m.write64(b.vlpi(2) + 0x70, 0);
    b.run(0, &[vmovp41(3, b.rdbase(0, 2), 1023)]);
    b.expect("5.3 VMOVP");
    b.m.write64(b.vlpi(3) + 0x70, 0);
    let l1 = b.memory(4096, 4096);
    b.m.write64(b.vlpi(2) + 0x70, VALID | 1 << 55 | l1 | SHARED);
    b.run(0, &[vmovp41(3, b.rdbase(0, 2), 1023)]);
    b.expect("5.3 VMOVP");
    b.m.store64(l1, VALID);
    b.run(0, &[vmovp41(3, b.rdbase(0, 2), 1023)]);
    b.expect("5.3 VMOVP");
    b.m.write64(b.vlpi(2) + 0x70, 0);
    let small = b.memory(4096, 4096);
    b.m.write64(b.vlpi(2) + 0x70, VALID | small | SHARED);
    b.run(0, &[vmovp41(3, b.rdbase(0, 2), 1023), vsync(3)]);
    b.m.assert_clean();
    b.run(0, &[vmapp41(600, b.rdbase(0, 2), b.vpt(), vconf, 1023, 0x100)]);
    b.expect("5.3 VMAPP");
    let apart = b.memory(0x8000, 0x4000) + 0x1000;
    b.m.write64(b.vlpi(3) + 0x70, VALID | 1 << 53 | apart | SHARED);
    let found = b.m.take_violations();
    assert!(found.iter().any(|v| v.what.contains("not aligned")), "{found:?}");
    b.m.write32(b.c.its[0].base, 0);
    b.m.write64(b.c.its[0].base + 0x2_0020, 3 << 32);
    b.expect("12.19 GITS_SGIR");
}

#[test]
fn the_vpe_table_of_a_gicv4_1_its_must_be_in_gits_baser2() {
    let c = Config::v4_1(1, 1).each_its(|_, i| i.basers.swap(2, 3));
    let b = Bench::raw(c);
    b.m.write64(b.c.its[0].base + 0x118, VALID | b.memory(0x1_0000, 0x1_0000) | SHARED | 2 << 8);
    b.m.write64(b.c.its[0].base + 0x80, VALID | b.memory(0x1_0000, 0x1_0000) | SHARED | 0xf);
    b.m.write32(b.c.its[0].base, 1);
    b.expect("12.19 GITS_BASER<n>");
}

#[test]
fn ptz_without_alloc_is_a_violation() {
    let b = Bench::up41(Config::v4_1(1, 2));
    let (vconf, vpt) = (b.vconf(), b.vpt());
    b.run(0, &[vmapp41(3, b.rdbase(0, 0), vpt, vconf, 1023, 0x300), vsync(3)]);
    b.m.assert_clean();
    b.run(1, &[vmapp41(3, b.rdbase(1, 0), vpt, vconf, 1023, 0x200)]);
    b.expect("5.3 VMAPP");
}

/// Writes pseudo-random values to registers, commands and memory. The model may record violations but must not panic.
#[test]
fn nothing_that_software_writes_makes_the_model_panic() {
    for (n, config) in
        [Config::qemu(2), Config::its_list(2, 2), Config::v4_1(2, 2), Config::graviton3(3)].into_iter().enumerate()
    {
        let v4_1 = config.cpus[0].rvpeid;
        let b = if v4_1 { Bench::up41(config) } else { Bench::up(config) };
        let memory = b.memory(0x40_0000, 0x1_0000);
        let mut seed = 0x1234_5678_9abc_def1 + n as u64;
        let mut random = move |n: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 16) % n
        };
        let opcodes = [1, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 0x21, 0x22, 0x23, 0x25, 0x29, 0x2a, 0x2b, 0x2d, 0x2e];
        for _ in 0..6000 {
            let its = random(b.c.its.len() as u64) as usize;
            let cpu = random(b.c.cpus.len() as u64) as usize;
            // Most numbers are small and most addresses exist, so that many commands have an effect.
            let small = |r: &mut dyn FnMut(u64) -> u64| r(12);
            match random(12) {
                0..6 => {
                    let op = opcodes[random(opcodes.len() as u64) as usize];
                    let place = memory + random(64) * 0x1_0000;
                    let target = b.rdbase(its, cpu);
                    let mut words = [
                        op | small(&mut random) << 32 | random(4) << 8,
                        small(&mut random) | (u64::from(LPI) + small(&mut random)) << 32,
                        random(2) << 63 | target | small(&mut random),
                        place | 13,
                    ];
                    match random(4) {
                        0 => words[1] = small(&mut random) | small(&mut random) << 32,
                        1 => words[2] = (u64::from(LPI) + small(&mut random)) | (1023 << 32),
                        2 => words[random(4) as usize] = random(u64::MAX),
                        _ => words[2] = VALID | place,
                    }
                    if words[0] as u8 == 0x22 && !b.c.its[its].vmovp {
                        // A wrong list hangs the ITS, which would end the test's effect on it.
                        words[1] = small(&mut random) << 32 | 1 << its;
                    }
                    b.post(its, &[words]);
                }
                6 => b.m.msi_at(its, small(&mut random) as u32, small(&mut random) as u32),
                7 => {
                    let register = rd_base(&b.c, cpu) + random(4) * 0x1_0000 + random(0x20) * 8;
                    b.m.write64(register, random(u64::MAX) & !random(u64::MAX));
                }
                8 => {
                    let value = random(2) << 63 | PENDING_LAST | (memory + random(64) * 0x1_0000) | small(&mut random);
                    b.m.write64(b.vlpi(cpu) + 0x70 + 8 * random(2), value);
                }
                9 => {
                    let _ = b.m.read64(rd_base(&b.c, cpu) + random(0x8000) * 8);
                    let _ = b.m.read32(b.c.its[its].base + random(0x4000) * 4);
                    b.m.write32(b.c.its[its].base + random(0x50) * 4, random(0x1_0000_0000) as u32);
                }
                10 => {
                    let _ = (b.m.host_ack(cpu), b.m.guest_ack(cpu), b.m.resident(cpu));
                    b.m.advance_us(random(20));
                }
                _ => b.m.store64(memory + random(0x8_0000) * 8, random(u64::MAX)),
            }
            if random(50) == 0 {
                // Enable again what a random write has disabled.
                b.m.write32(rd_base(&b.c, cpu), 1);
                b.m.write32(b.c.its[its].base, b.m.read32(b.c.its[its].base) | 1);
                b.m.inject(Fault::Hung { its });
                b.m.heal();
            }
        }
        assert!(b.m.violations().len() > 100);
        assert!(b.m.commands(0).len() > 100);
    }
}
