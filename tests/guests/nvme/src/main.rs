//! An EL1 guest with an NVMe disk that ends while its I/O is in flight: by a reset or by a crash.
//!
//! In each life it looks at the memory that its device writes to, which must be zero and stay so: what it asked for in a life
//! before must not arrive. Then it sets the controller up, keeps 16 reads and writes of 4 KiB in flight, and says `GUEST ENDS how`
//! when some of them are complete. The counter selects how many, and how it ends.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "guest_main is called by name, and the device reads and writes the guest's memory")]

#[cfg(target_os = "none")]
mod nvme;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("a guest: build it for aarch64-unknown-none-softfloat and boot it as a domain's kernel under Doorward");
}

#[cfg(target_os = "none")]
mod guest {
    use crate::nvme::{self, Nvme};
    use core::arch::asm;
    use core::sync::atomic::{AtomicU64, Ordering};
    use guest_rt::gic;
    use guest_rt::its::{Its, Table};
    use guest_rt::{cpu, exception, mrs, off, pci, say, smccc};

    const SYSTEM_RESET: u64 = 0x8400_0009;

    /// Class code of an NVMe controller.
    const NVME: u32 = 0x01_0802;
    /// Where its BAR is put.
    const BAR: u64 = 0x1010_0000;

    const TRANSLATER: u64 = 0x0809_0040;
    const LPI: u32 = 8192;

    static TAKEN: AtomicU64 = AtomicU64::new(0);
    static PROPERTIES: Table<0x1_0000> = Table::new();
    static PENDING: Table<0x1_0000> = Table::new();
    static ITT: Table<0x1_0000> = Table::new();

    /// Time in which what an earlier life has asked for could arrive, in milliseconds.
    const LATE: u64 = 20;

    fn interrupt(intid: u32) {
        if intid == LPI {
            TAKEN.fetch_add(1, Ordering::AcqRel);
        } else {
            say!("GUEST FAIL nvme: interrupt {intid}");
        }
    }

    fn fail(what: &str) -> ! {
        say!("GUEST FAIL nvme: {what}");
        off()
    }

    /// Maps event 0 of the device.
    fn map_event(device: u32) {
        let redistributor = gic::mine();
        // SAFETY: inside the table, before the redistributor reads it.
        unsafe { (PROPERTIES.address() as *mut u8).write_volatile(0xa0 | 1) };
        gic::lpis_on(redistributor, PROPERTIES.address(), gic::id_bits().min(14), PENDING.address());
        let mut its = Its::on();
        let target = its.target(redistributor);
        its.map_device(device, 1, ITT.address());
        its.map_collection(0, target);
        its.map_event(device, 0, LPI, 0);
        its.invalidate(device, 0);
        its.sync(target);
    }

    /// Ends this life.
    fn end(crash: bool) {
        if crash {
            say!("GUEST ENDS by a crash");
            // SAFETY: without vectors, the exception ends this guest alone.
            unsafe { asm!("msr vbar_el1, {}", "isb", "udf #0", in(reg) 0x30_0000_0000u64) };
        } else {
            say!("GUEST ENDS by a reset");
            smccc::hvc(SYSTEM_RESET, 0, 0, 0);
        }
        fail("still running");
    }

    #[unsafe(no_mangle)]
    extern "C" fn guest_main() -> ! {
        exception::on_interrupt(interrupt);
        gic::distributor_on();
        gic::cpu_on(0);
        nvme::expect_zeroes("at first");
        let late = cpu::now() + mrs!("cntfrq_el0") / 1000 * LATE;
        while cpu::now() < late {
            core::hint::spin_loop();
        }
        nvme::expect_zeroes("after a while");
        let Some(host) = pci::Host::find() else { fail("the device tree has no PCI host") };
        let functions = (0..32).map(|device| host.function(device)).filter(|function| function.ids().is_some());
        let Some(function) = functions.into_iter().find(|function| function.class() == NVME) else {
            fail("there is no NVMe controller")
        };
        let Some(device) = host.device_id(function.rid) else { fail("the device tree has no DeviceID for it") };
        map_event(device);
        function.switch_on(BAR);
        if !function.is_on(BAR) || !function.msix(BAR, 0, TRANSLATER, 0) {
            fail("it cannot be switched on");
        }
        let Some(mut disk) = Nvme::start(BAR) else { fail("the controller does not become ready") };
        let chance = cpu::now() / (mrs!("cntfrq_el0") / 1_000_000);
        let enough = chance / 2 % 64;
        cpu::unmask();
        disk.fill();
        while disk.completed() < enough {
            let before = TAKEN.load(Ordering::Acquire);
            let progress = cpu::wait(cpu::LONG, || disk.poll() || TAKEN.load(Ordering::Acquire) != before);
            if !progress {
                fail("no I/O completes");
            }
            disk.fill();
        }
        if enough != 0 && !cpu::wait(cpu::LONG, || TAKEN.load(Ordering::Acquire) != 0) {
            fail("no interrupt came");
        }
        if disk.failed() != 0 {
            say!("GUEST FAIL nvme: {} of {} I/Os failed", disk.failed(), disk.completed());
            off()
        }
        end(!chance.is_multiple_of(2));
        off()
    }
}
