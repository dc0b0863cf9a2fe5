//! VMs and vPEs come and go, and leave nothing behind.

use super::*;

/// A configuration table, and a pending table for each vPE.
const ALLOCATIONS_OF_VM: usize = 1 + VPES / VMS;

impl World {
    /// Takes a vPE away and makes a new one in its place.
    pub(super) fn replace(&mut self, v: usize) {
        let (Some(vpe), Some(vm)) = (self.vpes[v], self.vms[v / 2]) else { return };
        if self.is_resident(v) {
            assert!(matches!(self.v4().remove_vpe(vpe), Err(V4Error::Resident(_))));
            return;
        }
        self.quiet();
        if self.events.values().any(|(e, _)| matches!(e, Event::Virtual { vpe: w, .. } if *w == vpe)) {
            assert_eq!(self.v4().remove_vpe(vpe), Err(V4Error::HasEvents));
            self.drop_events(|_, e| matches!(e, Event::Virtual { vpe: w, .. } if w == vpe), true);
        }
        // A doorbell that rang for it is nobody's any more, or its successor's.
        self.listen();
        self.v4().remove_vpe(vpe).unwrap();
        self.vpes[v] = Some(self.v4().add_vpe(vm, self.in_service(v)).unwrap());
        self.wake(v);
    }

    pub(super) fn try_destroy(&mut self, vm: usize) {
        let Some(handle) = self.vms[vm] else { return };
        let members = 2 * vm..2 * vm + 2;
        if members.clone().any(|v| self.is_resident(v)) {
            assert_eq!(self.v4().destroy_vm(handle), Err(V4Error::HasVpes));
            return;
        }
        self.quiet();
        let vpes: Vec<VpeId> = members.filter_map(|v| self.vpes[v]).collect();
        self.drop_events(|_, e| matches!(e, Event::Virtual { vpe, .. } if vpes.contains(&vpe)), true);
        self.listen();
        self.destroy(vm);
    }

    /// Takes a VM down that nothing is mapped to: all that it had comes back.
    pub(super) fn destroy(&mut self, vm: usize) {
        let Some(handle) = self.vms[vm].take() else { return };
        let before = self.memory();
        let members = 2 * vm..2 * vm + 2;
        for v in members.clone() {
            self.v4().remove_vpe(self.vpes[v].expect("a vPE")).unwrap();
            self.vpes[v] = None;
            self.wake(v);
        }
        self.v4().destroy_vm(handle).unwrap();
        let (allocations, lpis) = self.memory();
        assert_eq!((allocations + ALLOCATIONS_OF_VM, lpis + members.len() as u32), before, "memory, LPIs of a VM");
    }

    pub(super) fn create(&mut self, vm: usize) {
        let handle = self.v4().create_vm(14).unwrap();
        self.vms[vm] = Some(handle);
        for (k, (_, owed)) in &self.events {
            self.v4().configure(handle, Self::vintid(*k), owed.priority | u8::from(owed.enabled)).unwrap();
        }
        for v in 2 * vm..2 * vm + 2 {
            self.vpes[v] = Some(self.v4().add_vpe(handle, self.in_service(v)).unwrap());
        }
    }
}
