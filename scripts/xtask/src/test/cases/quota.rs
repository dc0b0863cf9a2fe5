//! What dom0's kernel cannot get by its ITS or by PCI configuration space: memory of EL2 beyond its quota, and a function that is
//! hidden from it.

use crate::fail::Outcome;
use crate::qemu::Machine;
use crate::qmp::Qmp;
use crate::qtest::Qtest;
use crate::session::End;
use crate::test::linux::Transcript;
use crate::test::{Case, Lab, Verdict};

use super::guests;

/// The ECAM of QEMU's `virt`.
const ECAM: u64 = 0x40_1000_0000;

/// The place of the bridge above the hidden function, on bus 0.
const PORT: u64 = 2;

/// What the firmware would have given the bridge: its buses, its window, and that it decodes it.
const BRIDGE: [(u64, u32); 3] = [(0x18, 0x0001_0100), (0x20, 0x1010_1000), (0x04, 0x0000_0006)];

/// The cases of this topic.
pub fn cases() -> Vec<Case> {
    let case = |name, shows, run| Case { name, shows, bare: false, run };
    vec![
        case("guest-sweep", "a guest that maps every device of its ITS in turn costs EL2 no memory", sweep),
        case("guest-pci", "a hidden PCI function is not reached by other bus numbers of the bridge above it", pci),
    ]
}

/// Compares the free memory before and after sweeps over all DeviceIDs.
fn sweep(lab: &Lab) -> Verdict {
    let machine = guests::machine(lab, "guest-sweep")?;
    let mut free: Vec<String> = Vec::new();
    let transcript = lab.watch(&machine, 60, |session, line| {
        if let Some((_, now)) = line.split_once("host: free memory: ") {
            free.push(now.trim().to_owned());
        }
        // The hypervisor's key, then a byte for the guest.
        if line.contains("GUEST NOTE sweep: ") {
            session.type_in("\x01\x01\x01m\x01\x01\x01g").map_err(|failure| failure.text)?;
        }
        Ok(())
    })?;
    passed(lab, &transcript, "sweep")?;
    match &free[..] {
        [before, after @ ..] if after.len() == 2 && after.iter().all(|now| now == before) => {
            println!("   free: {before}");
            lab.complaints()
        }
        _ => Err(format!("free memory changed: {free:?}")),
    }
}

/// Runs the guest on a machine whose buses have been numbered as firmware does.
fn pci(lab: &Lab) -> Verdict {
    let mut machine = Machine { hv: "dom0_pci_hide=0000:01:00.0".into(), ..guests::machine(lab, "guest-pci")? };
    // The path of a socket must be short, so it is not in the case's folder.
    let socket = |name| std::env::temp_dir().join(format!("doorward-{name}-{}", std::process::id()));
    let (qtest, qmp) = (socket("pci-qtest"), socket("pci-qmp"));
    machine.qmp = Some(qmp.clone());
    machine.extra.extend(Qtest::flags(&qtest));
    let port = format!("pcie-root-port,id=above,bus=pcie.0,addr={PORT:#x},chassis=1");
    let drive = "if=none,id=hidden,driver=null-co,size=16M";
    let flags = ["-S", "-device", &port, "-drive", drive, "-device", "nvme,serial=hidden,drive=hidden,bus=above"];
    machine.extra.extend(flags.map(str::to_owned));
    let mut started = false;
    let number = || -> Outcome {
        let mut qtest = Qtest::connect(&qtest)?;
        BRIDGE.iter().try_for_each(|&(at, value)| qtest.write32(ECAM + (PORT << 15) + at, value))?;
        Qmp::connect(&qmp)?.monitor("cont").map(drop)
    };
    let transcript = std::thread::scope(|scope| {
        let numbered = scope.spawn(number);
        let transcript = lab.watch(&machine, 60, |_, line| {
            started |= line.contains("GUEST START pci bus=1");
            Ok(())
        });
        numbered.join().map_err(|_| "the thread panicked".to_owned())?.map_err(|failure| failure.text)?;
        transcript
    });
    [qtest, qmp].iter().for_each(|socket| _ = std::fs::remove_file(socket));
    let transcript = transcript?;
    passed(lab, &transcript, "pci")?;
    if started { lab.complaints() } else { Err("the guest did not find the bridge to bus 1".into()) }
}

/// Checks that the guest says that it has passed, and has ended.
fn passed(lab: &Lab, transcript: &Transcript, name: &str) -> Verdict {
    let lines = || transcript.lines.iter().map(|(_, line)| line.trim());
    if let Some(line) = lines().find(|line| line.starts_with("GUEST FAIL")) {
        return Err(line.to_owned());
    }
    if transcript.end == End::Off && lines().any(|line| line == format!("GUEST PASS {name}")) {
        return Ok(());
    }
    Err(format!("{:?} ({})", transcript.end, lab.dir.join("console.log").display()))
}
