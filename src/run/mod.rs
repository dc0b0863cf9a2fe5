//! The run loop: what each CPU does from bring-up on.
//!
//! | file | content |
//! |---|---|
//! | `mod.rs` | [`cpu_loop`]: asks the scheduler for a vCPU, runs it, or idles |
//! | `vcpu_run.rs` | one vCPU on this CPU, from switch-in to switch-out |
//! | `switch.rs` | the scheduler hook: what is saved and restored when a vCPU is switched in and out |
//! | `exit.rs` | how each synchronous exit is handled |
//! | `next.rs` | what a vCPU does after an exit |
//! | `smccc.rs` | dispatch of HVC and SMC calls |
//! | [`decode`] | decoding of trapped accesses, as pure functions |

pub mod decode;
mod exit;
mod next;
pub mod smccc;
mod switch;
mod vcpu_run;

use crate::arch::el1::Present;
use crate::arch::{features, timer};
use crate::console;
use crate::control::{Control, hotplug};
use crate::domain::irq;
use crate::ids::CpuId;
use vcpu_run::{LONG_SWITCH_US, VcpuRun};

/// Runs vCPUs on `cpu`, which is this CPU. Does not return.
pub fn cpu_loop(control: &'static Control, cpu: CpuId) -> ! {
    let domains = control.domains;
    let host = domains.host;
    let state = host.cpu(cpu);
    let (present, long_switch) = (Present::here(), timer::us_to_ticks(LONG_SWITCH_US));
    // The features that guests see are settled before the first vCPU becomes runnable.
    let mut hcr = None;
    loop {
        if state.is_leaving() {
            control.teardown.leave(cpu);
            hotplug::leave(domains, cpu);
        }
        let next = host.sched.next(cpu, timer::now());
        state.timer.set_resched(host.sched.next_resched_at(cpu));
        match next {
            Some(vcpu) => {
                control.teardown.hand_over(cpu);
                let Some(domain) = domains.get(vcpu.domain) else { unreachable!("a vCPU without a domain") };
                let hcr = *hcr.get_or_insert_with(|| features::program(host.features()));
                let late = Some(timer::now() + long_switch);
                let shares = host.sched.shares_cpus();
                let domain = &*domain;
                VcpuRun {
                    control,
                    host,
                    state,
                    domain,
                    vcpu: &vcpu,
                    cpu,
                    present: &present,
                    hcr,
                    shares,
                    resident: None,
                    late,
                }
                .run();
            }
            None => {
                if console::has_work() {
                    irq::drain_console(domains);
                }
                control.poll_manage();
                control.teardown.idle(cpu);
                irq::take_all(domains, cpu);
            }
        }
    }
}
