//! vPEs.
use crate::its::{Item, Vte};
use crate::machine::State;
pub(crate) struct Vpt;
pub(crate) struct Vpe;
pub(crate) struct Resident {
    pub(crate) vpt: u64,
}
pub(crate) struct Leaving;
impl State {
    pub(crate) fn forget_vpts(&mut self, _at: u64, _len: u64) {}
    pub(crate) fn guest_ack(&mut self, _cpu: usize) -> Option<u32> {
        None
    }
    pub(crate) fn guest_best(&mut self, _cpu: usize) -> Option<u32> {
        None
    }
    pub(crate) fn vpt_pending(&mut self, _vpt: u64) -> Vec<u32> {
        Vec::new()
    }
    pub(crate) fn name_vpe(&self, _r: &Resident) -> Option<u16> {
        None
    }
    pub(crate) fn reset_residency(&mut self, _rd: usize, _a: u64, _b: u64) {}
    pub(crate) fn settle_residency(&mut self, _rd: usize) {}
    pub(crate) fn vlpi_read(&mut self, _rd: usize, _offset: u64, _wide: bool) -> u64 {
        0
    }
    pub(crate) fn vlpi_write(&mut self, _rd: usize, _offset: u64, _value: u64, _wide: bool) {}
    pub(crate) fn direct_invalidate_virtual(
        &mut self,
        _n: &'static str,
        _rd: usize,
        _vpe: u16,
        _v: bool,
        _one: Option<u32>,
    ) -> Option<Item> {
        None
    }
    pub(crate) fn invalidate_vlpi(&mut self, _vpt: u64, _intid: Option<u32>) {}
    pub(crate) fn clear_vlpi(&mut self, _vpt: u64, _intid: u32) -> bool {
        false
    }
    pub(crate) fn release_vpt(&mut self, _vpt: u64) {}
    pub(crate) fn invalidate_doorbell(&mut self, _vpe: u16) {}
    pub(crate) fn configure_sgi(&mut self, _vpe: u16, _sgi: u8, _enable: bool, _group: bool, _priority: u8) {}
    pub(crate) fn set_vlpi(&mut self, _vpe: u16, _vte: Vte, _vintid: u32, _doorbell: u32) {}
    pub(crate) fn send_vsgi(&mut self, _its: usize, _value: u64) {}
    pub(crate) fn vpe_table_in_use(&self, _base: u64) -> bool {
        false
    }
    pub(crate) fn check_shared_vpe_table(&mut self, _its: usize) {}
}
