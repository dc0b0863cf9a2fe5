//! Redistributors: discovery, wake-up, LPI tables, and the registers that the backends of `v4` use (IHI 0069, 12.10 to
//! 12.12).
//!
//! A CPU's redistributor is found by its affinity. The distance to the next one follows from its own GICR_TYPER.VLPIS
//! (four frames or two), unless the platform states a stride. GICR_TYPER.Last ends a region, beyond which there may be
//! nothing; but not where the firmware lists each redistributor by itself: there the bit is unreliable, and all of a
//! region exists. On some machines it is clear at the end of a region.

use super::dist::{Bank, RWP_LIMIT_US};
use super::error::GicError;
use super::facts::common_affinity;
use super::inherited::Inherited;
use super::layout::Layout;
use super::lpi::{LpiTables, Lpis, TABLE_ALIGN, pending_bytes};
use super::regs::{
    GICR_CTLR, GICR_INVLPIR, GICR_PENDBASER, GICR_PROPBASER, GICR_SYNCR, GICR_TYPER, GICR_VPENDBASER,
    GICR_VPENDBASER_4_1, GICR_VPROPBASER, GICR_VPROPBASER_4_1, GICR_VSGIPENDR, GICR_WAKER, PIDR2, PIDR2_FIELDS,
    attributes, from_pa_4k, from_pa_64k, gicr, pa_4k, pa_64k,
};
use super::table::{Table, TableError, page_bytes};
use crate::ids::{CpuId, Intid, Lpi, Mpidr, Pa, VpeId};
use crate::mmio::{Coherence, Hw};
use crate::sync::{Lock, Rank};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use tock_registers::LocalRegisterCopy;
use tock_registers::fields::FieldValue;

const TWO_FRAMES: u64 = 2 * gicr::FRAME;
const FOUR_FRAMES: u64 = 4 * gicr::FRAME;
/// How long GICR_SYNCR.Busy may stay set.
const SYNCR_LIMIT_US: u64 = 1_000;
/// How long GICR_VPENDBASER.Dirty may stay set. Parsing a table takes 0.1 to 2 us where it was measured.
pub const DIRTY_LIMIT_US: u64 = 500;
/// The same where GICR_TYPER.Dirty is 0, so that the bit may be UNKNOWN while Valid is 1.
const DIRTY_HINT_LIMIT_US: u64 = 20;
/// GICR_VPROPBASER.Size counts pages in seven bits (GICv4.1).
pub const VPE_TABLE_PAGES: u64 = 128;
/// INTIDs 0 to 31 are SGIs and PPIs.
const PRIVATE: u32 = 32;
const SGIS: u32 = 16;

type Typer = LocalRegisterCopy<u64, GICR_TYPER::Register>;
type Ctlr = LocalRegisterCopy<u32, GICR_CTLR::Register>;
type Vprop = LocalRegisterCopy<u64, GICR_VPROPBASER_4_1::Register>;
pub type Vpend = LocalRegisterCopy<u64, GICR_VPENDBASER::Register>;

/// States of a redistributor. ABSENT: there is none, and no register is accessed. LEAVING: its CPU is being taken out of service; LPIs are enabled, and no more of them are
/// sent there.
const ABSENT: u8 = 0;
const OFFLINE: u8 = 1;
const AWAKE: u8 = 2;
const LEAVING: u8 = 3;
const LPIS: u8 = 4;

/// The redistributor of a CPU, or the place of one that is absent.
pub struct Redist<H> {
    hw: H,
    pub base: Pa,
    pub cpu: CpuId,
    pub typer: Typer,
    pub ir: bool,
    bank: Bank<H>,
    /// Held while INVLPIR, INVALLR, CLRLPIR or VSGIR is written: none of them is written while it is busy.
    invalidate: Lock<()>,
    state: AtomicU8,
    /// The address of its pending table, or 0. Once allocated it is never freed: EnableLPIs may be impossible to clear.
    pending: AtomicU64,
    /// The resident vPE plus one, or 0.
    resident: AtomicU32,
    /// What GICR_VPROPBASER holds (GICv4.0), so that it is written only when it changes.
    pub vprop: AtomicU64,
    /// What made the resident vPE resident in GICR_VPENDBASER (GICv4.1): the write that ends its residency repeats it.
    entered: AtomicU64,
    /// Dirty was found to be meaningless while Valid is 1.
    dirty_is_noise: AtomicBool,
    /// A wait for Dirty missed its deadline: it is repeated before anything else is written.
    pub dirty_missed: AtomicBool,
}

/// Whether there is a GICv3 or GICv4 frame at this address.
fn is_gic<H: Hw>(hw: &H, frame: Pa) -> bool {
    let pidr2 = LocalRegisterCopy::<u32, PIDR2_FIELDS::Register>::new(hw.read32(frame.add(PIDR2)));
    matches!(pidr2.read(PIDR2_FIELDS::ARCH_REV), 3 | 4)
}

fn typer_at<H: Hw>(hw: &H, base: Pa) -> Typer {
    Typer::new(hw.read64(base.add(gicr::TYPER)))
}

/// Finds the redistributor of each CPU in `layout`, in the same order. A CPU that the firmware has disabled, or that has
/// been removed, may have none.
pub fn find<H: Hw + Clone>(hw: &H, layout: &Layout<'_>) -> Vec<Redist<H>> {
    let mut found: Vec<Option<(Pa, Typer)>> = layout.cpus.iter().map(|_| None).collect();
    for &region in layout.redists {
        if found.iter().any(Option::is_none) {
            walk(hw, layout, region, &mut found);
        }
    }
    let redist = |(n, place)| Redist::new(hw.clone(), CpuId(n as u16), place);
    found.into_iter().enumerate().map(redist).collect()
}

fn walk<H: Hw>(hw: &H, layout: &Layout<'_>, region: (Pa, u64), found: &mut [Option<(Pa, Typer)>]) {
    let (start, size) = region;
    let mut offset = 0;
    while offset + TWO_FRAMES <= size {
        let base = start.add(offset);
        if !is_gic(hw, base) {
            // A hole. Its size is unknown, so the step is the smaller one.
            offset += layout.stride.unwrap_or(TWO_FRAMES);
            continue;
        }
        let typer = typer_at(hw, base);
        let mpidr = Mpidr::from_packed(typer.read(GICR_TYPER::AFFINITY) as u32);
        let place = layout.cpus.iter().position(|c| *c == mpidr).and_then(|n| found.get_mut(n));
        if let Some(place @ None) = place {
            *place = Some((base, typer));
            if found.iter().all(Option::is_some) {
                return;
            }
        }
        if typer.is_set(GICR_TYPER::LAST) && !layout.redists_listed {
            return;
        }
        let own = if typer.is_set(GICR_TYPER::VLPIS) { FOUR_FRAMES } else { TWO_FRAMES };
        offset += layout.stride.unwrap_or(own).max(TWO_FRAMES);
    }
}

/// The value that clears GICR_VPENDBASER.Valid (GICv4.1), from the one that the register holds. vPEID and the group
/// enables stay as they are: to change them while Valid is 1, be it by the write that clears it, is UNPREDICTABLE, and a
/// redistributor may take from that write the groups for which it rings the doorbell.
fn v41_leave(held: u64, with: FieldValue<u64, GICR_VPENDBASER_4_1::Register>) -> u64 {
    let mut v = LocalRegisterCopy::<u64, GICR_VPENDBASER_4_1::Register>::new(held);
    v.modify(
        GICR_VPENDBASER_4_1::VALID::CLEAR
            + GICR_VPENDBASER_4_1::DIRTY::CLEAR
            + GICR_VPENDBASER_4_1::DOORBELL::CLEAR
            + GICR_VPENDBASER_4_1::PENDING_LAST::CLEAR,
    );
    v.modify(with);
    v.get()
}

impl<H: Hw + Clone> Redist<H> {
    fn new(hw: H, cpu: CpuId, place: Option<(Pa, Typer)>) -> Self {
        let ctlr = Ctlr::new(place.map_or(0, |(base, _)| hw.read32(base.add(gicr::CTLR))));
        let (base, typer) = place.unwrap_or((Pa(0), Typer::new(0)));
        Redist {
            bank: Bank::new(hw.clone(), base.add(gicr::SGI_BASE)),
            hw,
            base,
            cpu,
            typer,
            ir: ctlr.is_set(GICR_CTLR::IR),
            invalidate: Lock::new(Rank::Redist, ()),
            state: AtomicU8::new(if place.is_some() { OFFLINE } else { ABSENT }),
            pending: AtomicU64::new(0),
            resident: AtomicU32::new(0),
            vprop: AtomicU64::new(0),
            entered: AtomicU64::new(0),
            dirty_is_noise: AtomicBool::new(false),
            dirty_missed: AtomicBool::new(false),
        }
    }
}

impl<H: Hw> Redist<H> {
    /// Whether there is one.
    pub fn is_present(&self) -> bool {
        self.state.load(Ordering::Relaxed) != ABSENT
    }

    pub fn has_vlpis(&self) -> bool {
        self.typer.is_set(GICR_TYPER::VLPIS)
    }

    pub fn has_rvpeid(&self) -> bool {
        self.typer.is_set(GICR_TYPER::RVPEID)
    }

    pub fn has_dirty(&self) -> bool {
        self.typer.is_set(GICR_TYPER::DIRTY)
    }

    pub fn processor(&self) -> u16 {
        self.typer.read(GICR_TYPER::PROCESSOR_NUMBER) as u16
    }

    /// Whether GICR_INVLPIR and GICR_SYNCR are implemented.
    pub fn can_invlpi(&self) -> bool {
        self.can_setclr() || self.ir || self.has_rvpeid()
    }

    /// Whether GICR_SETLPIR and GICR_CLRLPIR are implemented.
    pub fn can_setclr(&self) -> bool {
        self.typer.is_set(GICR_TYPER::DIRECT_LPI)
    }

    /// The registers of an SGI or a PPI; `None` for another interrupt.
    pub fn private(&self, i: Intid) -> Option<&Bank<H>> {
        (i.0 < PRIVATE).then_some(&self.bank)
    }

    pub fn has_lpis(&self) -> bool {
        self.state.load(Ordering::Acquire) >= LEAVING
    }

    /// Whether LPIs and vPEs may be sent to this redistributor.
    pub fn is_in_service(&self) -> bool {
        self.state.load(Ordering::Acquire) == LPIS
    }

    /// Begins to take the CPU out of service: from now on no LPI or vPE is sent here. `false`: it is not in service.
    pub fn begin_take_out(&self) -> bool {
        self.state.compare_exchange(LPIS, LEAVING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Takes the CPU into service, or back if it could not be taken out: LPIs and vPEs may be sent here.
    pub fn enter_service(&self) {
        self.state.store(LPIS, Ordering::Release);
    }

    /// Completes taking the CPU out of service: all LPIs and vPEs have been moved away.
    pub fn leave_service(&self) {
        self.state.store(OFFLINE, Ordering::Release);
    }

    fn ctlr(&self) -> Ctlr {
        Ctlr::new(self.hw.read32(self.base.add(gicr::CTLR)))
    }

    fn settled(&self) -> bool {
        self.hw.wait(RWP_LIMIT_US, || !self.ctlr().is_set(GICR_CTLR::RWP))
    }

    /// Disables an SGI or PPI and waits for completion.
    pub fn disable(&self, i: Intid) {
        if let Some(bank) = self.private(i) {
            bank.disable(i);
            let _ = self.settled();
        }
    }

    /// Ends a residency that an earlier owner of the machine left behind, because the memory that it uses is ours now.
    /// `false`: the write-back was not seen to complete.
    pub fn clear_stale_residency(&self) -> bool {
        if !self.has_vlpis() {
            return true;
        }
        let vpend = self.base.add(gicr::VPENDBASER);
        let clean = if self.vpend().is_set(GICR_VPENDBASER::VALID) {
            let before = self.clean_before_change();
            let v = self.vpend().get();
            let v = if self.has_rvpeid() {
                v41_leave(v, GICR_VPENDBASER_4_1::PENDING_LAST::SET)
            } else {
                let mut v = Vpend::new(v);
                v.modify(GICR_VPENDBASER::VALID::CLEAR);
                v.get()
            };
            self.hw.write64(vpend, v);
            self.clean() && before
        } else {
            true
        };
        if self.has_rvpeid() {
            let at = self.base.add(gicr::VPROPBASER);
            let mut v = LocalRegisterCopy::<u64, GICR_VPROPBASER_4_1::Register>::new(self.hw.read64(at));
            if v.is_set(GICR_VPROPBASER_4_1::VALID) {
                v.modify(GICR_VPROPBASER_4_1::VALID::CLEAR);
                self.hw.write64(at, v.get());
            }
        }
        clean
    }

    /// Wakes the redistributor, resets SGIs and PPIs, and enables SGIs.
    pub fn wake(&self) -> Result<(), GicError> {
        let at = self.base.add(gicr::WAKER);
        let waker = || LocalRegisterCopy::<u32, GICR_WAKER::Register>::new(self.hw.read32(at));
        let mut awake = waker();
        awake.modify(GICR_WAKER::PROCESSOR_SLEEP::CLEAR);
        self.hw.write32(at, awake.get());
        if !self.hw.wait(RWP_LIMIT_US, || !waker().is_set(GICR_WAKER::CHILDREN_ASLEEP)) {
            return Err(GicError::Asleep(self.cpu));
        }
        self.bank.reset(0, PRIVATE);
        if !self.settled() {
            return Err(GicError::RegisterWrite(self.cpu));
        }
        for sgi in 0..SGIS {
            self.bank.enable(Intid(sgi));
        }
        self.state.fetch_max(AWAKE, Ordering::AcqRel);
        Ok(())
    }

    /// Points the redistributor at the configuration table and at a pending table of its own, and enables LPIs.
    ///
    /// EnableLPIs may be impossible to clear. If it is set already and the registers point at our tables, because the
    /// CPU was out of service before, they are used as they are. If an earlier owner set it and it cannot be cleared,
    /// the tables are used further if they can be; otherwise the CPU gets no LPIs.
    pub fn enable_lpis(&self, lpis: &Lpis<H>, coherent: bool, inherited: &Inherited) -> Result<(), GicError> {
        if self.has_lpis() {
            return Ok(());
        }
        let vlpis_v40 = self.has_vlpis() && !self.has_rvpeid();
        if vlpis_v40 {
            // The firmware may have written it while the CPU was out of service.
            self.vprop.store(self.hw.read64(self.base.add(gicr::VPROPBASER)), Ordering::Relaxed);
        }
        if self.ctlr().is_set(GICR_CTLR::ENABLE_LPIS) {
            if self.has_our_tables(lpis) {
                return Ok(());
            }
            if !self.disable_lpis() {
                self.inherit(lpis, inherited)?;
                if vlpis_v40 {
                    self.accept_vlpis(lpis);
                }
                return Ok(());
            }
        }
        let pending = self.pending_table(lpis)?;
        if !self.set_propbaser(lpis, coherent) {
            lpis.set_noncoherent();
        }
        self.set_pendbaser(pending, coherent);
        let mut on = self.ctlr();
        on.modify(GICR_CTLR::ENABLE_LPIS::SET);
        self.hw.write32(self.base.add(gicr::CTLR), on.get());
        if !self.settled() || !self.ctlr().is_set(GICR_CTLR::ENABLE_LPIS) {
            return Err(GicError::RegisterWrite(self.cpu));
        }
        if vlpis_v40 {
            self.accept_vlpis(lpis);
        }
        Ok(())
    }

    /// Sets IDbits, which limits already before the first residency which vLPIs the redistributor accepts (GICv4.0).
    fn accept_vlpis(&self, lpis: &Lpis<H>) {
        self.set_vpropbaser(GICR_VPROPBASER::ID_BITS.val(u64::from(lpis.id_bits() - 1)).value);
    }

    /// Disables LPIs. `false`: they stay enabled.
    pub fn disable_lpis(&self) -> bool {
        let mut off = self.ctlr();
        if !off.is_set(GICR_CTLR::ENABLE_LPIS) {
            return true;
        }
        off.modify(GICR_CTLR::ENABLE_LPIS::CLEAR);
        self.hw.write32(self.base.add(gicr::CTLR), off.get());
        self.settled() && !self.ctlr().is_set(GICR_CTLR::ENABLE_LPIS)
    }

    /// Uses the tables that the redistributor has been left with.
    fn inherit(&self, lpis: &Lpis<H>, inherited: &Inherited) -> Result<(), GicError> {
        let tables = self.lpi_tables();
        if !lpis.is_configured_by(&tables) || !inherited.take(&self.hw, tables.ranges().1) {
            return Err(GicError::LpisStuckOn(self.cpu));
        }
        if !tables.coherent {
            lpis.set_noncoherent();
        }
        self.pending.store(tables.pending.0, Ordering::Release);
        Ok(())
    }

    /// The tables that its registers point at.
    pub fn lpi_tables(&self) -> LpiTables {
        let prop =
            LocalRegisterCopy::<u64, GICR_PROPBASER::Register>::new(self.hw.read64(self.base.add(gicr::PROPBASER)));
        let pend =
            LocalRegisterCopy::<u64, GICR_PENDBASER::Register>::new(self.hw.read64(self.base.add(gicr::PENDBASER)));
        LpiTables {
            config: from_pa_4k(prop.read(GICR_PROPBASER::PA_4K)),
            pending: from_pa_64k(pend.read(GICR_PENDBASER::PA_64K)),
            id_bits: prop.read(GICR_PROPBASER::ID_BITS) as u8 + 1,
            coherent: prop.read(GICR_PROPBASER::SHAREABILITY) != 0
                && prop.read(GICR_PROPBASER::INNER_CACHE) > attributes::NON_CACHEABLE,
        }
    }

    /// Whether two redistributors must use the same configuration table.
    pub fn shares_tables_with(&self, other: &Redist<H>) -> bool {
        let ((own, levels), (affinity, other_levels)) = (self.group(), other.group());
        levels == other_levels && common_affinity(own, levels) == common_affinity(affinity, levels)
    }

    /// This redistributor's pending table, zeroed: the one that it had before, or a new one.
    fn pending_table(&self, lpis: &Lpis<H>) -> Result<Pa, GicError> {
        let bytes = pending_bytes(lpis.id_bits());
        let pending = match self.pending.load(Ordering::Acquire) {
            0 => self.hw.alloc(bytes, TABLE_ALIGN).ok_or(GicError::NoMemory)?,
            // What was pending in it was moved when the CPU was taken out of service.
            own => {
                (0..bytes as u64).step_by(8).for_each(|at| self.hw.store64(Pa(own).add(at), 0));
                Pa(own)
            }
        };
        self.hw.publish(pending, bytes, Coherence::NonCoherent);
        self.pending.store(pending.0, Ordering::Release);
        Ok(pending)
    }

    /// Whether the redistributor uses the tables that this driver made.
    fn has_our_tables(&self, lpis: &Lpis<H>) -> bool {
        let (tables, own) = (self.lpi_tables(), self.pending.load(Ordering::Acquire));
        own != 0 && tables.pending == Pa(own) && lpis.is_configured_by(&tables)
    }

    /// Writes GICR_PROPBASER. `false`: the redistributor does not snoop the caches.
    fn set_propbaser(&self, lpis: &Lpis<H>, coherent: bool) -> bool {
        let at = self.base.add(gicr::PROPBASER);
        let place =
            GICR_PROPBASER::PA_4K.val(pa_4k(lpis.table())) + GICR_PROPBASER::ID_BITS.val(u64::from(lpis.id_bits() - 1));
        if coherent {
            let shared = GICR_PROPBASER::INNER_CACHE.val(attributes::WRITE_ALLOCATE)
                + GICR_PROPBASER::OUTER_CACHE.val(attributes::SAME_AS_INNER)
                + GICR_PROPBASER::SHAREABILITY.val(attributes::INNER_SHAREABLE);
            self.hw.write64(at, (place + shared).value);
            let got = LocalRegisterCopy::<u64, GICR_PROPBASER::Register>::new(self.hw.read64(at));
            if got.read(GICR_PROPBASER::SHAREABILITY) != 0 {
                return true;
            }
        }
        self.hw.write64(at, (place + GICR_PROPBASER::INNER_CACHE.val(attributes::NON_CACHEABLE)).value);
        false
    }

    fn set_pendbaser(&self, pending: Pa, coherent: bool) {
        let at = self.base.add(gicr::PENDBASER);
        let place = GICR_PENDBASER::PA_64K.val(pa_64k(pending)) + GICR_PENDBASER::PTZ::SET;
        if coherent {
            let shared = GICR_PENDBASER::INNER_CACHE.val(attributes::WRITE_ALLOCATE)
                + GICR_PENDBASER::OUTER_CACHE.val(attributes::SAME_AS_INNER)
                + GICR_PENDBASER::SHAREABILITY.val(attributes::INNER_SHAREABLE);
            self.hw.write64(at, (place + shared).value);
            let got = LocalRegisterCopy::<u64, GICR_PENDBASER::Register>::new(self.hw.read64(at));
            if got.read(GICR_PENDBASER::SHAREABILITY) != 0 {
                return;
            }
        }
        self.hw.write64(at, (place + GICR_PENDBASER::INNER_CACHE.val(attributes::NON_CACHEABLE)).value);
    }

    /// Reloads the configuration of a physical LPI. Requires [`can_invlpi`](Self::can_invlpi). `false` if it missed its
    /// deadline, as for the functions below.
    pub fn invalidate_lpi(&self, lpi: Lpi) -> bool {
        self.invalidate(gicr::INVLPIR, GICR_INVLPIR::INTID.val(u64::from(lpi.0)).value)
    }

    /// Reloads the configuration of a vLPI (GICv4.1; before, V and vPEID are RES0).
    pub fn invalidate_vlpi(&self, vpe: VpeId, vintid: u32) -> bool {
        let v = GICR_INVLPIR::INTID.val(u64::from(vintid))
            + GICR_INVLPIR::VPEID.val(u64::from(vpe.0))
            + GICR_INVLPIR::V::SET;
        self.invalidate(gicr::INVLPIR, v.value)
    }

    /// Reloads the configuration of all vLPIs of a vPE (GICv4.1).
    pub fn invalidate_vpe(&self, vpe: VpeId) -> bool {
        self.invalidate(gicr::INVALLR, (GICR_INVLPIR::VPEID.val(u64::from(vpe.0)) + GICR_INVLPIR::V::SET).value)
    }

    fn invalidate(&self, register: u64, value: u64) -> bool {
        let _busy = self.invalidate.lock();
        let idle = self.syncr();
        if idle {
            self.hw.write64(self.base.add(register), value);
        }
        idle && self.syncr()
    }

    #[inline]
    fn syncr(&self) -> bool {
        let at = self.base.add(gicr::SYNCR);
        let busy = || LocalRegisterCopy::<u32, GICR_SYNCR::Register>::new(self.hw.read32(at)).is_set(GICR_SYNCR::BUSY);
        self.hw.wait(SYNCR_LIMIT_US, || !busy())
    }

    /// Clears the pending state of a physical LPI. Requires [`can_setclr`](Self::can_setclr).
    pub fn clear_lpi(&self, lpi: Lpi) -> bool {
        let _busy = self.invalidate.lock();
        let idle = self.syncr();
        if idle {
            self.hw.write64(self.base.add(gicr::CLRLPIR), u64::from(lpi.0));
        }
        idle && self.syncr()
    }

    /// Its affinity, and how many levels of it (from Aff3 down) name the redistributors that share its tables.
    pub fn group(&self) -> (u32, u8) {
        (self.affinity(), self.typer.read(GICR_TYPER::COMMON_LPI_AFF) as u8)
    }

    /// Its affinity, packed as in GICR_TYPER.
    pub fn affinity(&self) -> u32 {
        self.typer.read(GICR_TYPER::AFFINITY) as u32
    }

    /// Makes a vPE table that this redistributor supports (GICv4.1). The redistributor is powered, and no register points
    /// at the table yet.
    pub fn make_vpe_table(&self, vpes: u64) -> Result<Table, TableError> {
        let at = self.base.add(gicr::VPROPBASER);
        let write = |v: FieldValue<u64, GICR_VPROPBASER_4_1::Register>| {
            self.hw.write64(at, v.value);
            Vprop::new(self.hw.read64(at))
        };
        let (mut page, mut entry) = (None, 0);
        for code in [2u64, 1, 0] {
            let got = write(GICR_VPROPBASER_4_1::PAGE_SIZE.val(code));
            if got.read(GICR_VPROPBASER_4_1::PAGE_SIZE) == code {
                page = Some(code);
                entry = 8 * (got.read(GICR_VPROPBASER_4_1::ENTRY_SIZE) + 1);
                break;
            }
        }
        let code = page.ok_or(TableError::PageSize)?;
        let can_be_indirect = || {
            write(GICR_VPROPBASER_4_1::PAGE_SIZE.val(code) + GICR_VPROPBASER_4_1::INDIRECT::SET)
                .is_set(GICR_VPROPBASER_4_1::INDIRECT)
        };
        Table::allocate(&self.hw, (vpes, entry), page_bytes(code), VPE_TABLE_PAGES, can_be_indirect)
    }

    /// Makes sure that a vPE table has memory behind an entry.
    pub fn ensure_vpe(&self, table: &Table, id: u64) -> Result<(), TableError> {
        table.ensure(&self.hw, id)
    }

    /// Frees a table from [`make_vpe_table`](Self::make_vpe_table) that no register has pointed at.
    pub fn free_vpe_table(&self, table: &Table) {
        table.free(&self.hw);
    }

    /// Whether this redistributor uses this vPE table (GICv4.1).
    pub fn has_vpe_table(&self, table: &Table) -> bool {
        let (base, ..) = table.shape();
        let got = Vprop::new(self.hw.read64(self.base.add(gicr::VPROPBASER)));
        got.is_set(GICR_VPROPBASER_4_1::VALID) && got.read(GICR_VPROPBASER_4_1::PA_4K) == pa_4k(base)
    }

    /// Points this redistributor at its group's vPE table (GICv4.1). `zeroed`: no redistributor or ITS has used it
    /// before.
    pub fn set_vpe_table(&self, table: &Table, zeroed: bool, coherent: bool) -> bool {
        let (base, pages, page, indirect) = table.shape();
        let at = self.base.add(gicr::VPROPBASER);
        let code = u64::from(page.ilog2().saturating_sub(12) / 2);
        let place = GICR_VPROPBASER_4_1::VALID::SET
            + GICR_VPROPBASER_4_1::Z.val(u64::from(zeroed))
            + GICR_VPROPBASER_4_1::INDIRECT.val(u64::from(indirect))
            + GICR_VPROPBASER_4_1::PAGE_SIZE.val(code)
            + GICR_VPROPBASER_4_1::PA_4K.val(pa_4k(base))
            + GICR_VPROPBASER_4_1::SIZE.val(pages - 1)
            + GICR_VPROPBASER_4_1::OUTER_CACHE.val(attributes::SAME_AS_INNER);
        let (share, inner) = if coherent {
            (attributes::INNER_SHAREABLE, attributes::READ_ALLOCATE)
        } else {
            (0, attributes::NON_CACHEABLE)
        };
        let attributes = GICR_VPROPBASER_4_1::SHAREABILITY.val(share) + GICR_VPROPBASER_4_1::INNER_CACHE.val(inner);
        self.hw.write64(at, (place + attributes).value);
        let got = Vprop::new(self.hw.read64(at));
        got.is_set(GICR_VPROPBASER_4_1::VALID)
            && got.read(GICR_VPROPBASER_4_1::PA_4K) == pa_4k(base)
            && got.read(GICR_VPROPBASER_4_1::INDIRECT) == u64::from(indirect)
            && got.read(GICR_VPROPBASER_4_1::PAGE_SIZE) == code
    }

    /// The pending virtual SGIs of a vPE, one bit each (GICv4.1); `None` if a deadline was missed.
    pub fn pending_vsgis(&self, vpe: VpeId) -> Option<u16> {
        let _busy = self.invalidate.lock();
        let at = self.base.add(gicr::VSGIPENDR);
        let read = || LocalRegisterCopy::<u32, GICR_VSGIPENDR::Register>::new(self.hw.read32(at));
        let idle = || self.hw.wait(SYNCR_LIMIT_US, || !read().is_set(GICR_VSGIPENDR::BUSY));
        if !idle() {
            return None;
        }
        self.hw.write32(self.base.add(gicr::VSGIR), u32::from(vpe.0));
        idle().then(|| read().read(GICR_VSGIPENDR::PENDING) as u16)
    }

    pub fn has_vsgi(&self) -> bool {
        self.typer.is_set(GICR_TYPER::VSGI)
    }

    // ---- residency: used by v4/residency and the backends ---------------------------------------------------

    #[inline]
    pub fn vpend(&self) -> Vpend {
        Vpend::new(self.hw.read64(self.base.add(gicr::VPENDBASER)))
    }

    #[inline]
    pub fn write_vpend(&self, value: u64) {
        self.hw.write64(self.base.add(gicr::VPENDBASER), value);
    }

    /// Makes a vPE resident (GICv4.1).
    #[inline]
    pub fn enter_v41(&self, value: FieldValue<u64, GICR_VPENDBASER_4_1::Register>) {
        self.write_vpend(value.value);
        self.entered.store(value.value, Ordering::Relaxed);
    }

    /// Ends the residency of a vPE (GICv4.1). `with` is Doorbell or PendingLast.
    #[inline]
    pub fn leave_v41(&self, with: FieldValue<u64, GICR_VPENDBASER_4_1::Register>) {
        self.write_vpend(v41_leave(self.entered.load(Ordering::Relaxed), with));
    }

    /// Writes GICR_VPROPBASER (GICv4.0) if it holds another value. No vPE is resident.
    #[inline]
    pub fn set_vpropbaser(&self, value: u64) {
        if self.vprop.load(Ordering::Relaxed) != value {
            self.hw.write64(self.base.add(gicr::VPROPBASER), value);
            self.vprop.store(value, Ordering::Relaxed);
        }
    }

    /// Waits for GICR_VPENDBASER.Dirty to clear. Valid is 0, or the bit is meaningful in any case.
    #[inline]
    pub fn clean(&self) -> bool {
        self.hw.wait(DIRTY_LIMIT_US, || !self.vpend().is_set(GICR_VPENDBASER::DIRTY))
    }

    /// Waits for Dirty to clear while Valid is 1. Without GICR_TYPER.Dirty the bit is UNKNOWN then: it is waited for
    /// briefly, and ignored from then on if it stays set.
    #[inline]
    pub fn clean_before_change(&self) -> bool {
        if self.has_dirty() {
            return self.clean();
        }
        if !self.dirty_is_noise.load(Ordering::Relaxed)
            && !self.hw.wait(DIRTY_HINT_LIMIT_US, || !self.vpend().is_set(GICR_VPENDBASER::DIRTY))
        {
            self.dirty_is_noise.store(true, Ordering::Relaxed);
        }
        true
    }

    /// Claims this redistributor for a vPE; `Err` names the vPE that has claimed it already.
    #[inline]
    pub fn claim(&self, vpe: VpeId) -> Result<(), VpeId> {
        match self.resident.compare_exchange(0, u32::from(vpe.0) + 1, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(other) => Err(VpeId((other - 1) as u16)),
        }
    }

    #[inline]
    pub fn release(&self) {
        self.resident.store(0, Ordering::Release);
    }

    /// The vPE that has claimed this redistributor.
    pub fn resident(&self) -> Option<VpeId> {
        self.resident.load(Ordering::Acquire).checked_sub(1).map(|v| VpeId(v as u16))
    }
}
