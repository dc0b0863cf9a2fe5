//! Virtual commands (to come): each is reported as unknown.
use super::Vte;
use super::command::Command;
use super::queue::Outcome;
use crate::machine::State;
impl State {
    pub(crate) fn virtual_command(&mut self, its: usize, command: Command) -> Outcome {
        self.flag(command.section(), format!("ITS{its} does not know {command:?}"));
        Outcome::Done
    }
    pub(crate) fn vte(&mut self, _its: usize, _section: &'static str, _vpe: u16) -> Option<Vte> {
        None
    }
    pub(crate) fn vlpi_mapped(&self, _vpt: u64, _intid: u32) -> bool {
        false
    }
    pub(crate) fn check_vconfig_published(&mut self, _section: &'static str, _vpt: u64, _vintid: u32) {}
}
