//! The registers and the changes between direct and software, with a GIC that only records what it is told.

use super::super::testing::{BOOT, Machine, REDIST, sgi1r};
use super::super::{SgiGroup, lr};
use super::*;
use crate::ids::Mpidr;
use std::vec::Vec;

const ONE: VcpuId = VcpuId(1);
const CTLR: u64 = 0;
const BOTH_GROUPS: u64 = 3;

/// Two vCPUs whose guest has asked for SGIs without active state; neither has entered since.
fn asked() -> Machine {
    let machine = Machine::new(2);
    machine.vgic.offer_direct_sgis();
    machine.dist_write(CTLR, 0);
    machine.dist_write(CTLR, BOTH_GROUPS | u64::from(NASSGI_REQ));
    machine.forget();
    machine
}

/// The same with direct SGIs.
fn direct() -> Machine {
    let machine = asked();
    [BOOT, ONE].into_iter().for_each(|vcpu| machine.vgic.update_sgis(&machine, vcpu, true));
    machine
}

fn send(machine: &Machine, intid: u32, group: SgiGroup) {
    machine.vgic.send_sgi(machine, BOOT, sgi1r(intid, Mpidr(1)), group);
}

fn in_gic(machine: &Machine) -> u16 {
    machine.vsgis.borrow()[1].1
}

fn gic_config(machine: &Machine, sgi: usize) -> SgiConfig {
    machine.vsgis.borrow()[1].0[sgi]
}

fn listed(machine: &Machine) -> Vec<u32> {
    machine.enter(ONE).iter().map(|(intid, ..)| *intid).collect()
}

fn read_pending(machine: &Machine) -> u64 {
    machine.vgic.redist_read(machine, BOOT, ONE, REDIST + 0x200, 4)
}

fn write_one(machine: &Machine, offset: u64, value: u64) {
    let _ = machine.vgic.redist_write(machine, BOOT, ONE, REDIST + offset, 4, value);
}

#[test]
fn sgis_without_active_state_can_be_asked_for_where_they_are_offered_while_no_group_is_enabled() {
    let machine = Machine::new(1);
    assert_eq!(machine.dist_read(0xc), 0);
    machine.dist_write(CTLR, 0);
    machine.dist_write(CTLR, 0x100);
    assert_eq!(machine.dist_read(CTLR), 0x50, "not offered");
    machine.vgic.offer_direct_sgis();
    assert_eq!(machine.dist_read(0xc), 1 << 8);
    machine.dist_write(CTLR, 0x102);
    assert_eq!(machine.dist_read(CTLR), 0x152, "in the write that enables a group, as Linux does");
    machine.dist_write(CTLR, 0x2);
    assert_eq!(machine.dist_read(CTLR), 0x152, "a group is enabled");
    machine.dist_write(CTLR, 0x0);
    assert_eq!(machine.dist_read(CTLR), 0x150, "a group was enabled");
    machine.dist_write(CTLR, 0x0);
    assert_eq!(machine.dist_read(CTLR), 0x50);
}

#[test]
fn a_direct_sgi_takes_no_kick_and_no_list_register() {
    let machine = direct();
    send(&machine, 4, SgiGroup::One);
    assert_eq!(in_gic(&machine), 1 << 4);
    assert!(machine.kicked().is_empty() && listed(&machine).is_empty());
    assert!(!machine.vgic.has_pending(ONE, Machine::OPEN));
}

#[test]
fn sgis_are_not_direct_while_the_vpe_is_not_resident_or_the_guest_has_not_asked() {
    let machine = asked();
    machine.vgic.update_sgis(&machine, ONE, false);
    send(&machine, 4, SgiGroup::One);
    assert_eq!((in_gic(&machine), listed(&machine)), (0, std::vec![4]));
    let machine = Machine::new(2);
    machine.vgic.offer_direct_sgis();
    machine.vgic.update_sgis(&machine, ONE, true);
    send(&machine, 4, SgiGroup::One);
    assert_eq!((in_gic(&machine), listed(&machine)), (0, std::vec![4]));
}

#[test]
fn pending_sgis_are_carried_over_both_ways() {
    let machine = asked();
    send(&machine, 4, SgiGroup::One);
    send(&machine, 9, SgiGroup::One);
    assert_eq!(machine.kicked(), [ONE, ONE]);
    machine.vgic.update_sgis(&machine, ONE, true);
    assert_eq!(in_gic(&machine), 1 << 4 | 1 << 9);
    assert!(listed(&machine).is_empty());
    send(&machine, 5, SgiGroup::One);
    machine.vgic.update_sgis(&machine, ONE, false);
    assert_eq!(in_gic(&machine), 0);
    assert!(!gic_config(&machine, 4).enabled, "what arrives late is not delivered by the GIC");
    assert!(machine.vgic.has_pending(ONE, Machine::OPEN));
    assert_eq!(listed(&machine), [4, 5, 9]);
}

#[test]
fn enable_group_and_priority_of_direct_sgis_are_followed_by_the_gic() {
    let machine = asked();
    let registers = |sgi| gic_config(&machine, sgi);
    write_one(&machine, 0x180, 1 << 3);
    machine.vgic.update_sgis(&machine, ONE, true);
    assert_eq!(registers(2), SgiConfig { enabled: true, group1: true, priority: 0 });
    assert!(!registers(3).enabled);
    machine.forget();
    write_one(&machine, 0x100, 1 << 3);
    assert!(registers(3).enabled);
    assert_eq!(machine.kicked(), [ONE], "it may have been pending, and its vCPU asleep");
    write_one(&machine, 0x404, 0xc0b0_a090);
    assert_eq!((registers(4).priority, registers(7).priority), (0x90, 0xc0));
    write_one(&machine, 0x80, 0xffff_fff0);
    assert!(!registers(3).group1 && registers(4).group1);
    let before = machine.vsgis.borrow().clone();
    write_one(&machine, 0x180, 0xffff_0000);
    write_one(&machine, 0x410, 0xa0a0_a0a0);
    assert!(machine.vsgis.borrow().as_slice() == before.as_slice(), "PPIs");
}

#[test]
fn the_pending_state_of_direct_sgis_is_read_and_written_in_the_gic() {
    let machine = direct();
    send(&machine, 4, SgiGroup::One);
    write_one(&machine, 0x200, 1 << 6 | 1 << 20);
    assert_eq!(in_gic(&machine), 1 << 4 | 1 << 6);
    assert_eq!(read_pending(&machine), 1 << 4 | 1 << 6 | 1 << 20);
    write_one(&machine, 0x280, 1 << 4 | 1 << 20);
    assert_eq!((in_gic(&machine), read_pending(&machine)), (1 << 6, 1 << 6));
}

#[test]
fn a_group_0_request_does_not_reach_a_direct_sgi_of_group_1() {
    let machine = direct();
    send(&machine, 4, SgiGroup::Zero);
    assert_eq!(in_gic(&machine), 0);
}

#[test]
fn an_sgi_in_a_list_register_has_no_active_state_either_if_the_guest_has_asked() {
    let machine = asked();
    send(&machine, 4, SgiGroup::One);
    assert_eq!(machine.enter(ONE), [(4, 1, 0)]);
    assert_eq!(machine.hcr(ONE) & lr::HCR_VSGI_EOI_COUNT, lr::HCR_VSGI_EOI_COUNT, "its end is not counted");
    machine.acknowledge(ONE, 4);
    machine.exit(ONE);
    assert_eq!(machine.hcr(ONE) & lr::HCR_VSGI_EOI_COUNT, lr::HCR_VSGI_EOI_COUNT);
    assert!(listed(&machine).is_empty());
    send(&machine, 4, SgiGroup::One);
    assert_eq!(machine.enter(ONE), [(4, 1, 0)]);
    machine.exit(ONE);
    write_one(&machine, 0x300, 0x1_0010);
    assert_eq!(machine.vgic.redist_read(&machine, BOOT, ONE, REDIST + 0x300, 4), 0x1_0000);
}

#[test]
fn active_sgis_are_inactive_once_the_guest_has_asked_and_ends_are_counted_again_if_it_withdraws() {
    let machine = Machine::new(2);
    machine.vgic.offer_direct_sgis();
    send(&machine, 4, SgiGroup::One);
    machine.enter(ONE);
    machine.acknowledge(ONE, 4);
    machine.exit(ONE);
    machine.dist_write(CTLR, 0);
    machine.dist_write(CTLR, 0x103);
    assert!(listed(&machine).is_empty());
    machine.exit(ONE);
    assert_ne!(machine.hcr(ONE) & lr::HCR_VSGI_EOI_COUNT, 0);
    machine.dist_write(CTLR, 0);
    machine.dist_write(CTLR, 3);
    assert!(listed(&machine).is_empty());
    assert_eq!(machine.hcr(ONE) & lr::HCR_VSGI_EOI_COUNT, 0);
}

#[test]
fn if_the_its_fails_no_sgi_is_lost_and_software_delivers_them() {
    let machine = direct();
    send(&machine, 4, SgiGroup::One);
    machine.its_works.set(false);
    send(&machine, 5, SgiGroup::One);
    assert_eq!(machine.kicked(), [ONE]);
    assert_eq!(machine.dist_read(0xc), 0, "not offered any more");
    assert_eq!(machine.dist_read(CTLR), 0x153);
    machine.vgic.update_sgis(&machine, ONE, true);
    assert_eq!(listed(&machine), [4, 5]);
    assert!(machine.vgic.has_direct_sgis(BOOT), "until it enters");
    machine.vgic.update_sgis(&machine, BOOT, true);
    assert!(!machine.vgic.has_direct_sgis(BOOT));
}

#[test]
fn if_the_its_fails_while_sgis_become_direct_or_are_configured_none_is_lost() {
    let machine = asked();
    send(&machine, 4, SgiGroup::One);
    machine.its_works.set(false);
    machine.vgic.update_sgis(&machine, ONE, true);
    assert!(!machine.vgic.has_direct_sgis(ONE));
    assert_eq!(listed(&machine), [4]);
    let machine = direct();
    send(&machine, 4, SgiGroup::One);
    machine.its_works.set(false);
    write_one(&machine, 0x404, 0xa0a0_a0a0);
    assert_eq!(listed(&machine), [4]);
}

#[test]
fn sgis_stay_direct_while_it_is_unknown_which_are_pending() {
    let machine = direct();
    send(&machine, 4, SgiGroup::One);
    machine.vpes_answer.set(false);
    machine.vgic.update_sgis(&machine, ONE, false);
    assert!(machine.vgic.has_direct_sgis(ONE) && gic_config(&machine, 4).enabled);
    machine.vpes_answer.set(true);
    machine.vgic.update_sgis(&machine, ONE, false);
    assert_eq!(listed(&machine), [4]);
}

#[test]
fn powering_a_vcpu_off_clears_its_direct_sgis() {
    let machine = direct();
    send(&machine, 4, SgiGroup::One);
    machine.vgic.reset_vcpu(&machine, ONE);
    assert_eq!(in_gic(&machine), 0);
    assert!(machine.vgic.has_direct_sgis(ONE) && gic_config(&machine, 4).enabled);
    assert!(machine.vgic.reset_redist(&machine, ONE));
    assert!(!machine.vgic.has_direct_sgis(ONE) && !gic_config(&machine, 4).enabled);
}
