//! Emulation of trapped system registers and system instructions.
//!
//! The table in [`crate::arch::features`] determines what traps. Registers that a guest has are emulated here. All
//! others, above all those of hidden features, are UNDEFINED, as on a CPU without these features.
//!
//! | registers | emulation |
//! |---|---|
//! | ID registers, REVIDR, AIDR | from the table |
//! | ACTLR_EL1 | RAZ/WI |
//! | ICC_SGI1R, ICC_SGI0R, ICC_ASGI1R | to the guest's GIC |
//! | ICC_DIR | to the guest's GIC. It traps while there are more active interrupts than list registers |
//! | CNTP_*, CNTPCT | the emulated timer |
//! | MDSCR_EL1 | the vCPU's own, except for the bits of external debug |
//! | OS lock, claim tags, breakpoints 0 and 1, watchpoints 0 and 1, DCC | RAZ/WI |
//! | DC ISW, CSW, CISW | see [`SysRegPort::set_way`] |
//!
//! Arm ARM (DDI 0487), C5.1 (encodings), D24.2 to D24.8, H9 (debug registers); IHI 0069, 12.2 (ICC_*).

use crate::arch::esr::SysRegAccess;
use crate::dev::vtimer::VTimer;
use crate::ids::Intid;

/// The register through which an SGI was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SgiKind {
    /// ICC_SGI1R_EL1: group 1.
    Group1,
    /// ICC_SGI0R_EL1: group 0.
    Group0,
    /// ICC_ASGI1R_EL1: group 1 of the other Security state.
    OtherGroup1,
}

/// The result of an emulated access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Write this value to Rt (discard it if Rt is 31) and resume after the instruction.
    Read(u64),
    /// Resume after the instruction.
    Written,
    /// Inject the exception of an UNDEFINED instruction.
    Undef,
}

/// Access to the vCPU and its domain.
pub trait SysRegPort {
    /// Returns the value of an ID register, or `None` if the guest has no such register. See
    /// [`crate::arch::features::Features::guest_id`].
    fn guest_id(&self, op1: u8, crn: u8, crm: u8, op2: u8) -> Option<u64>;
    /// Sends an SGI. `value` is the value written, which the guest's GIC decodes.
    fn send_sgi(&mut self, kind: SgiKind, value: u64);
    /// Deactivates an interrupt.
    fn deactivate(&mut self, intid: Intid);
    /// Returns the value of CNTPCT_EL0.
    fn counter(&self) -> u64;
    /// Returns the vCPU's emulated physical timer.
    fn timer(&mut self) -> &mut VTimer;
    /// Sets the EL2 timer to the deadline of the emulated timer and PPI 30 to its level, after a write to the timer.
    fn timer_changed(&mut self);
    /// Returns MDSCR_EL1 of the vCPU.
    fn mdscr(&self) -> u64;
    /// Sets MDSCR_EL1 of the vCPU.
    fn set_mdscr(&mut self, value: u64);
    /// Handles the clean or invalidation of one set and way of a cache. The instruction itself is not executed.
    ///
    /// By the architecture it affects neither other CPUs nor system caches, and the vCPU may have moved to another CPU
    /// since the guest's loop over sets and ways began. So it is only useful to firmware that enables or disables its
    /// own caches. The domain may clean and invalidate all of its memory by address at the first such instruction, or
    /// do nothing if all masters are coherent.
    fn set_way(&mut self);
}

/// Bits of MDSCR_EL1 that a guest can set: SS, TDCC, KDE, MDE. The others are for an external debugger.
const MDSCR_GUEST: u64 = 1 | 1 << 12 | 1 << 13 | 1 << 15;
/// Value of OSLSR_EL1: there is an OS lock (OSLM = 0b10), and it is unlocked.
const OSLSR_UNLOCKED: u64 = 1 << 3;
/// Number of breakpoints, and of watchpoints, in the guest's ID_AA64DFR0_EL1.
const DEBUG_PAIRS: u8 = 2;

/// Emulates one trapped access. `written` is the value of Rt for a write (0 for XZR) and is ignored for a read.
pub fn emulate(access: SysRegAccess, written: u64, port: &mut dyn SysRegPort) -> Outcome {
    match access.op0 {
        3 => register(access, written, port),
        2 => debug_register(access, written, port),
        1 => instruction(access, port),
        _ => Outcome::Undef,
    }
}

fn register(access: SysRegAccess, written: u64, port: &mut dyn SysRegPort) -> Outcome {
    let SysRegAccess { op1, crn, crm, op2, is_read, .. } = access;
    match (op1, crn, crm, op2, is_read) {
        (_, 0, _, _, true) => port.guest_id(op1, crn, crm, op2).map_or(Outcome::Undef, Outcome::Read),
        // ACTLR_EL1
        (0, 1, 0, 1, _) => raz_wi(is_read),
        // ICC_DIR_EL1.INTID
        (0, 12, 11, 1, false) => {
            port.deactivate(Intid(written as u32 & 0x00ff_ffff));
            Outcome::Written
        }
        (0, 12, 11, 5, false) => sgi(port, SgiKind::Group1, written),
        (0, 12, 11, 6, false) => sgi(port, SgiKind::OtherGroup1, written),
        (0, 12, 11, 7, false) => sgi(port, SgiKind::Group0, written),
        // CNTPCT_EL0, CNTPCTSS_EL0
        (3, 14, 0, 1 | 5, true) => Outcome::Read(port.counter()),
        (3, 14, 2, 0..=2, _) => timer(op2, written, is_read, port),
        _ => Outcome::Undef,
    }
}

fn sgi(port: &mut dyn SysRegPort, kind: SgiKind, value: u64) -> Outcome {
    port.send_sgi(kind, value);
    Outcome::Written
}

const fn raz_wi(is_read: bool) -> Outcome {
    if is_read { Outcome::Read(0) } else { Outcome::Written }
}

fn timer(op2: u8, written: u64, is_read: bool, port: &mut dyn SysRegPort) -> Outcome {
    let now = port.counter();
    let timer = port.timer();
    match (op2, is_read) {
        (0, true) => return Outcome::Read(timer.tval(now)),
        (1, true) => return Outcome::Read(timer.ctl(now)),
        (_, true) => return Outcome::Read(timer.cval()),
        (0, false) => timer.set_tval(now, written),
        (1, false) => timer.set_ctl(written),
        (_, false) => timer.set_cval(written),
    }
    port.timer_changed();
    Outcome::Written
}

fn debug_register(access: SysRegAccess, written: u64, port: &mut dyn SysRegPort) -> Outcome {
    let SysRegAccess { op1, crn, crm, op2, is_read, .. } = access;
    match (op1, crn, crm, op2, is_read) {
        // MDSCR_EL1
        (0, 0, 2, 2, true) => Outcome::Read(port.mdscr() & MDSCR_GUEST),
        (0, 0, 2, 2, false) => {
            port.set_mdscr(written & MDSCR_GUEST);
            Outcome::Written
        }
        // DBGBVR<n>, DBGBCR<n>, DBGWVR<n>, DBGWCR<n>
        (0, 0, n, 4..=7, _) if n < DEBUG_PAIRS => raz_wi(is_read),
        // OSDTRRX, OSDTRTX, OSECCR, MDCCINT
        (0, 0, 0 | 3 | 6, 2, _) | (0, 0, 2, 0, _) => raz_wi(is_read),
        // MDRAR_EL1
        (0, 1, 0, 0, true) => Outcome::Read(0),
        // OSLAR_EL1
        (0, 1, 0, 4, false) => Outcome::Written,
        // OSLSR_EL1
        (0, 1, 1, 4, true) => Outcome::Read(OSLSR_UNLOCKED),
        // OSDLR_EL1, DBGPRCR_EL1
        (0, 1, 3 | 4, 4, _) => raz_wi(is_read),
        // DBGCLAIMSET_EL1, DBGCLAIMCLR_EL1: there are no claim tags
        (0, 7, 8 | 9, 6, _) => raz_wi(is_read),
        // DBGAUTHSTATUS_EL1
        (0, 7, 14, 6, true) => Outcome::Read(0),
        // MDCCSR_EL0
        (3, 0, 1, 0, true) => Outcome::Read(0),
        // DBGDTR_EL0, DBGDTRRX_EL0 and DBGDTRTX_EL0
        (3, 0, 4 | 5, 0, _) => raz_wi(is_read),
        _ => Outcome::Undef,
    }
}

fn instruction(access: SysRegAccess, port: &mut dyn SysRegPort) -> Outcome {
    let SysRegAccess { op1, crn, crm, op2, is_read, .. } = access;
    match (op1, crn, crm, op2, is_read) {
        // DC ISW, DC CSW, DC CISW
        (0, 7, 6 | 10 | 14, 2, false) => {
            port.set_way();
            Outcome::Written
        }
        _ => Outcome::Undef,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Port {
        timer: VTimer,
        now: u64,
        mdscr: u64,
        sgis: Vec<(SgiKind, u64)>,
        deactivated: Vec<Intid>,
        rearmed: u32,
        set_ways: u32,
    }

    impl SysRegPort for Port {
        fn guest_id(&self, op1: u8, _crn: u8, crm: u8, op2: u8) -> Option<u64> {
            (op1 == 0).then(|| u64::from(crm) << 4 | u64::from(op2))
        }
        fn send_sgi(&mut self, kind: SgiKind, value: u64) {
            self.sgis.push((kind, value));
        }
        fn deactivate(&mut self, intid: Intid) {
            self.deactivated.push(intid);
        }
        fn counter(&self) -> u64 {
            self.now
        }
        fn timer(&mut self) -> &mut VTimer {
            &mut self.timer
        }
        fn timer_changed(&mut self) {
            self.rearmed += 1;
        }
        fn mdscr(&self) -> u64 {
            self.mdscr
        }
        fn set_mdscr(&mut self, value: u64) {
            self.mdscr = value;
        }
        fn set_way(&mut self) {
            self.set_ways += 1;
        }
    }

    fn reg(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8, is_read: bool) -> SysRegAccess {
        SysRegAccess { op0, op1, crn, crm, op2, rt: 0, is_read }
    }

    #[test]
    fn id_registers_can_be_read_but_not_written() {
        let mut port = Port::default();
        assert_eq!(emulate(reg(3, 0, 0, 4, 1, true), 0, &mut port), Outcome::Read(0x41));
        assert_eq!(emulate(reg(3, 0, 0, 4, 1, false), 0, &mut port), Outcome::Undef);
        assert_eq!(emulate(reg(3, 1, 0, 0, 6, true), 0, &mut port), Outcome::Undef, "SMIDR");
    }

    #[test]
    fn each_sgi_register_sends_to_its_group() {
        let mut port = Port::default();
        for (op2, kind) in [(5, SgiKind::Group1), (6, SgiKind::OtherGroup1), (7, SgiKind::Group0)] {
            assert_eq!(emulate(reg(3, 0, 12, 11, op2, false), 0x100 + u64::from(op2), &mut port), Outcome::Written);
            assert_eq!(port.sgis.pop(), Some((kind, 0x100 + u64::from(op2))));
            assert_eq!(emulate(reg(3, 0, 12, 11, op2, true), 0, &mut port), Outcome::Undef, "write-only");
        }
        assert!(port.sgis.is_empty());
    }

    #[test]
    fn a_trapped_deactivation_has_the_intid_of_its_interrupt() {
        let mut port = Port::default();
        assert_eq!(emulate(reg(3, 0, 12, 11, 1, false), 0xff00_0028, &mut port), Outcome::Written);
        assert_eq!(port.deactivated, [Intid(0x28)]);
        assert_eq!(emulate(reg(3, 0, 12, 11, 1, true), 0, &mut port), Outcome::Undef, "write-only");
    }

    #[test]
    fn the_physical_timer_is_emulated_and_each_write_sets_the_el2_timer() {
        let mut port = Port { now: 1000, ..Port::default() };
        assert_eq!(emulate(reg(3, 3, 14, 2, 0, false), 50, &mut port), Outcome::Written);
        assert_eq!(emulate(reg(3, 3, 14, 2, 1, false), 1, &mut port), Outcome::Written);
        assert_eq!(emulate(reg(3, 3, 14, 2, 2, true), 0, &mut port), Outcome::Read(1050));
        assert_eq!((port.rearmed, port.timer.deadline(1000)), (2, Some(1050)));
        port.now = 1050;
        assert_eq!(emulate(reg(3, 3, 14, 2, 1, true), 0, &mut port), Outcome::Read(5));
        assert_eq!(emulate(reg(3, 3, 14, 0, 1, true), 0, &mut port), Outcome::Read(1050));
        assert_eq!(emulate(reg(3, 3, 14, 0, 1, false), 0, &mut port), Outcome::Undef);
        assert_eq!(port.rearmed, 2, "a read does not set the EL2 timer");
    }

    #[test]
    fn the_guest_can_set_single_step_but_no_bit_of_external_debug() {
        let mut port = Port::default();
        assert_eq!(emulate(reg(2, 0, 0, 2, 2, false), u64::MAX, &mut port), Outcome::Written);
        assert_eq!(port.mdscr, 0xb001);
        assert_eq!(emulate(reg(2, 0, 0, 2, 2, true), 0, &mut port), Outcome::Read(0xb001));
    }

    #[test]
    fn there_are_as_many_debug_registers_as_the_id_register_says() {
        let mut port = Port::default();
        for op2 in 4..=7 {
            assert_eq!(emulate(reg(2, 0, 0, 1, op2, true), 0, &mut port), Outcome::Read(0));
            assert_eq!(emulate(reg(2, 0, 0, 1, op2, false), 7, &mut port), Outcome::Written);
            assert_eq!(emulate(reg(2, 0, 0, 2, op2, true), 0, &mut port), Outcome::Undef);
        }
        assert_eq!(emulate(reg(2, 0, 1, 0, 4, false), 1, &mut port), Outcome::Written, "OSLAR");
        assert_eq!(emulate(reg(2, 0, 1, 1, 4, true), 0, &mut port), Outcome::Read(8), "OSLSR");
        assert_eq!(emulate(reg(2, 0, 1, 3, 4, true), 0, &mut port), Outcome::Read(0), "OSDLR");
    }

    #[test]
    fn hidden_and_unknown_registers_are_undefined() {
        let mut port = Port::default();
        let hidden = [
            (reg(3, 3, 9, 12, 0, true), "PMCR_EL0"),
            (reg(3, 0, 9, 9, 0, true), "PMSCR_EL1"),
            (reg(3, 0, 1, 2, 0, true), "ZCR_EL1"),
            (reg(3, 3, 13, 0, 5, true), "TPIDR2_EL0"),
            (reg(3, 3, 13, 0, 7, false), "SCXTNUM_EL0"),
            (reg(3, 0, 5, 3, 0, true), "ERRIDR_EL1"),
            (reg(3, 0, 10, 4, 7, true), "LORID_EL1"),
            (reg(3, 0, 15, 0, 0, true), "implementation defined"),
            (reg(3, 1, 0, 0, 4, true), "GMID_EL1"),
            (reg(2, 1, 0, 0, 1, true), "TRCTRACEIDR"),
            (reg(1, 0, 7, 6, 4, false), "DC IGSW"),
            (reg(1, 3, 7, 3, 4, false), "CFP RCTX"),
            (reg(0, 0, 0, 0, 0, true), "op0 0"),
        ];
        for (access, name) in hidden {
            assert_eq!(emulate(access, u64::MAX, &mut port), Outcome::Undef, "{name}");
        }
        assert_eq!((port.sgis.len(), port.rearmed, port.set_ways), (0, 0, 0));
    }

    #[test]
    fn actlr_is_raz_wi_and_set_way_operations_are_passed_to_the_port() {
        let mut port = Port::default();
        assert_eq!(emulate(reg(3, 0, 1, 0, 1, true), 0, &mut port), Outcome::Read(0));
        assert_eq!(emulate(reg(3, 0, 1, 0, 1, false), u64::MAX, &mut port), Outcome::Written);
        for crm in [6, 10, 14] {
            assert_eq!(emulate(reg(1, 0, 7, crm, 2, false), 0, &mut port), Outcome::Written);
        }
        assert_eq!(port.set_ways, 3);
    }
}
