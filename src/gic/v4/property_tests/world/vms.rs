//! Steps that make and remove VMs and vPEs.

use super::*;

/// A VM has a configuration table, and a pending table for each vPE.
const ALLOCATIONS_OF_VM: usize = 1 + VPES / VMS;

impl World {
    /// Removes a vPE and makes a new one in its place.
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
        // Its doorbell is taken first: afterwards the LPI is free, or belongs to the next vPE.
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

    /// The guest of a VM begins anew. The hardware does not forget by itself what was pending.
    pub(super) fn renew(&mut self, vm: usize) {
        let Some(handle) = self.vms[vm] else { return };
        let members = 2 * vm..2 * vm + 2;
        let vpes: Vec<VpeId> = members.clone().filter_map(|v| self.vpes[v]).collect();
        if let Some(v) = members.clone().find(|v| self.is_resident(*v)) {
            assert!(matches!(self.v4().renew_vpe(vpes[v % 2]), Err(V4Error::Resident(_) | V4Error::HasEvents)));
            return;
        }
        self.quiet();
        for its in 0..self.itss.into() {
            self.machine.inject(Fault::DiscardKeepsPending { its });
        }
        self.drop_events(|_, e| matches!(e, Event::Virtual { vpe, .. } if vpes.contains(&vpe)), true);
        self.machine.heal();
        let before = self.memory();
        self.v4().renew_vm(handle).unwrap();
        vpes.iter().for_each(|vpe| self.v4().renew_vpe(*vpe).unwrap());
        assert_eq!(self.memory(), before);
        members.for_each(|v| self.wake(v));
        self.configure_all(handle);
    }

    /// Removes a VM without mapped events, and checks that all its memory and LPIs are freed.
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
        self.configure_all(handle);
        for v in 2 * vm..2 * vm + 2 {
            self.vpes[v] = Some(self.v4().add_vpe(handle, self.in_service(v)).unwrap());
        }
    }

    fn configure_all(&self, vm: VmHandle) {
        for (k, (_, owed)) in &self.events {
            self.v4().configure(vm, Self::vintid(*k), owed.priority | u8::from(owed.enabled)).unwrap();
        }
    }
}
