//! On a machine with a GICv4.1: QEMU with the patches of `scripts/qemu-gicv41`.
//!
//! That QEMU reports each access that the architecture forbids. As for every Linux case, one such report fails the case.

use crate::qemu::Boot;
use crate::test::{Case, Lab, Verdict};

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: true, run };
    vec![case("gicv41-boot", "dom0 boots, sleeps and does I/O on a GICv4.1 without a forbidden access", boots)]
}

/// With WFI trapped, so that vPEs become resident and leave all the time.
fn boots(lab: &Lab) -> Verdict {
    let mut machine = lab.gicv41(lab.linux("fio", "300"))?;
    machine.hv = "vwfi=trap".into();
    let transcript = lab.linux_run(&machine, 120)?;
    let says = match lab.boot {
        Boot::Bare => "Using GICv4.1 mode",
        _ => "direct injection by GICv4.1",
    };
    if transcript.lines.iter().any(|(_, line)| line.contains(says)) {
        Ok(())
    } else {
        Err(format!("no line `{says}`: the GICv4.1 is not used"))
    }
}
