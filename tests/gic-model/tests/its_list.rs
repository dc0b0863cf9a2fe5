//! Several ITSs with GITS_TYPER.VMOVP = 0: sequence numbers, lists, the order of VMOVPs, and an ITS that stops.

mod common;

use common::*;
use gic_model::{Config, Fault, ItsNumber};

const V: u32 = LPI + 5;
const DB: u32 = LPI + 100;

/// vPEs 0 and 1 on CPU 0, mapped on ITSs 0 and 1 of three. On each of these, device 5, event 1 is vLPI V of vPE 0.
fn list() -> (Bench, u64, [u64; 2]) {
    let b = Bench::up(Config::its_list(3, 3));
    let (vconf, vpt) = (b.vconf(), [b.vpt(), b.vpt()]);
    b.set_config(DB, 0xa1);
    b.set_vconfig(vconf, V, 0xa1);
    (0..3).for_each(|cpu| b.m.write64(b.vlpi(cpu) + 0x70, 13));
    for its in 0..2 {
        b.device(its, 5);
        for n in 0..2u16 {
            b.run(its, &[vmapp(n, b.rdbase(its, 0), vpt[usize::from(n)]), vsync(n), vinvall(n), vsync(n)]);
        }
        b.run(its, &[vmapti(5, 1, 0, V, DB), vsync(0)]);
    }
    (b, vconf, vpt)
}

#[test]
fn an_its_number_is_written_or_fixed_and_must_be_unique() {
    let c = Config::its_list(1, 2).each_its(|n, i| {
        if n == 1 {
            i.number = ItsNumber::Fixed(9);
        }
    });
    let b = Bench::raw(c);
    for (its, want) in [(0, 0x30), (1, 0x90)] {
        let base = b.c.its[its].base;
        b.m.write32(base, 0x30);
        assert_eq!(b.m.read32(base) & 0xf0, want);
    }
    let b = Bench::raw(Config::its_list(1, 2));
    b.m.write64(b.c.its[0].base + 0x80, VALID | b.memory(0x1_0000, 0x1_0000) | SHARED | 0xf);
    b.m.write64(b.c.its[1].base + 0x80, VALID | b.memory(0x1_0000, 0x1_0000) | SHARED | 0xf);
    b.m.write32(b.c.its[0].base, 1);
    b.m.assert_clean();
    b.m.write32(b.c.its[1].base, 1);
    b.expect("12.19 GITS_CTLR");
}

#[test]
fn a_vmovp_completes_when_all_listed_itss_have_reached_it() {
    let (b, vconf, vpt) = list();
    let to = b.rdbase(0, 2);
    b.post(0, &[vmovp(1, 0b11, 0, to), vsync(0)]);
    assert!(!b.drained(0), "it waits for ITS1");
    b.post(1, &[vmovp(1, 0b11, 0, to), vsync(0)]);
    assert!(b.drained(0) && b.drained(1));
    b.enter(2, vpt[0], vconf);
    for its in 0..2 {
        b.m.msi_at(its, 5, 1);
        assert_eq!(b.m.guest_ack(2), Some(V));
    }
    b.m.assert_clean();
}

#[test]
fn itss_that_get_vmovps_in_different_orders_hang() {
    let (b, ..) = list();
    let to = b.rdbase(0, 2);
    b.post(0, &[vmovp(1, 0b11, 0, to), vmovp(2, 0b11, 1, to)]);
    b.post(1, &[vmovp(2, 0b11, 1, to), vmovp(1, 0b11, 0, to)]);
    assert!(!b.drained(0) && !b.drained(1));
    b.expect_first("5.3 VMOVP");
    let (b, ..) = list();
    b.post(0, &[vmovp(1, 0b11, 0, to), vmovp(2, 0b11, 1, to)]);
    b.post(1, &[vmovp(1, 0b11, 0, to), vmovp(2, 0b11, 1, to)]);
    assert!(b.drained(0) && b.drained(1));
    b.m.assert_clean();
}

#[test]
fn different_vmovps_with_one_sequence_number_hang() {
    let (b, ..) = list();
    b.post(0, &[vmovp(1, 0b11, 0, b.rdbase(0, 2))]);
    b.post(1, &[vmovp(1, 0b11, 0, b.rdbase(0, 1))]);
    assert!(!b.drained(0));
    b.expect_first("5.3 VMOVP");
}

#[test]
fn the_list_must_name_exactly_the_itss_that_map_the_vpe() {
    let (b, ..) = list();
    let to = b.rdbase(0, 2);
    // ITS1 has the vPE mapped but is not listed.
    b.run(0, &[vmovp(1, 0b01, 0, to)]);
    b.expect("5.3 VMOVP");
    let (b, ..) = list();
    // ITS2 does not have the vPE mapped but is listed.
    (0..3).for_each(|its| b.post(its, &[vmovp(1, 0b111, 0, to)]));
    assert!((0..3).all(|its| b.drained(its)));
    b.expect_first("5.3 VMOVP");
    let (b, ..) = list();
    // No ITS has number 5.
    b.post(0, &[vmovp(1, 0b10_0001, 0, to)]);
    assert!(!b.drained(0));
    b.expect("5.3 VMOVP");
    let (b, ..) = list();
    // ITS1 gets a command that lists only ITS0.
    b.post(1, &[vmovp(1, 0b01, 0, to)]);
    assert!(!b.drained(1));
    b.expect("5.3 VMOVP");
}

#[test]
fn a_disabled_its_need_not_be_listed_until_it_is_enabled_again() {
    let (b, vconf, vpt) = list();
    b.m.write32(b.c.its[1].base, 0x10);
    b.run(0, &[vmovp(1, 0b01, 0, b.rdbase(0, 2)), vsync(0)]);
    b.enter(2, vpt[0], vconf);
    b.m.msi_at(0, 5, 1);
    assert_eq!(b.m.guest_ack(2), Some(V));
    b.m.assert_clean();
    // A VMOVP that lists the disabled ITS waits for it.
    b.leave(2);
    b.post(0, &[vmovp(2, 0b11, 0, b.rdbase(0, 1))]);
    assert!(!b.drained(0));
    b.m.assert_clean();
    // When it is enabled again, it still has the old home of the vPE.
    let (b, vconf, vpt) = list();
    b.m.write32(b.c.its[1].base, 0x10);
    b.run(0, &[vmovp(1, 0b01, 0, b.rdbase(0, 2)), vsync(0)]);
    b.enter(2, vpt[0], vconf);
    b.m.write32(b.c.its[1].base, 0x11);
    b.expect("12.19 GITS_CTLR");
    b.leave(2);
    b.enter(2, vpt[0], vconf);
    b.expect("12.11 GICR_VPENDBASER");
    b.run(0, &[vmovp(2, 0b01, 1, b.rdbase(0, 2))]);
    b.expect("5.3 VMOVP");
}

#[test]
fn until_a_vmovp_completes_the_vpe_stays_on_its_old_cpu() {
    let (b, vconf, vpt) = list();
    b.m.inject(Fault::HangsAtVmovp { its: 1 });
    let to = b.rdbase(0, 2);
    b.post(0, &[vmovp(1, 0b11, 0, to), vsync(0)]);
    b.post(1, &[int(5, 1), vmovp(1, 0b11, 0, to), vsync(0)]);
    assert!(!b.drained(0) && !b.drained(1));
    assert_eq!(b.m.host_ack(0), Some(DB), "earlier commands were executed");
    b.m.assert_clean();
    b.enter(2, vpt[0], vconf);
    assert_eq!(b.m.take_violations().len(), 2, "each ITS has the vPE on another CPU");
    b.leave(2);
    b.enter(0, vpt[0], vconf);
    b.m.msi_at(0, 5, 1);
    assert_eq!(b.m.guest_ack(0), Some(V));
    b.leave(0);
    b.m.heal();
    assert!(b.drained(0) && b.drained(1));
    b.enter(2, vpt[0], vconf);
    b.m.msi_at(1, 5, 1);
    assert_eq!(b.m.guest_ack(2), Some(V));
    b.m.assert_clean();
}

#[test]
fn an_its_that_maps_a_vpe_later_must_agree_with_the_others() {
    let (b, vconf, vpt) = list();
    b.enter(0, vpt[0], vconf);
    b.run(2, &[vmapp(0, b.rdbase(2, 0), vpt[0]), vsync(0), vinvall(0), vsync(0)]);
    b.m.assert_clean();
    b.run(2, &[vunmapp(0), vsync(0)]);
    b.m.assert_clean();
    assert_eq!(b.m.resident(0), Some((vpt[0], Some(0))));
    b.run(2, &[vmapp(0, b.rdbase(2, 1), vpt[0])]);
    b.expect_first("5.3 VMAPP");
}

#[test]
fn a_vpe_mapped_on_no_its_can_be_resident_and_its_vpt_is_in_use_meanwhile() {
    let (b, vconf, _) = list();
    let own = b.vpt();
    b.enter(1, own, vconf);
    assert_eq!(b.leave(1) & PENDING_LAST, 0);
    b.m.free(own, 0x1_0000, 0x1_0000);
    b.m.assert_clean();
    let own = b.vpt();
    b.enter(1, own, vconf);
    b.m.free(own, 0x1_0000, 0x1_0000);
    b.expect("memory");
}
