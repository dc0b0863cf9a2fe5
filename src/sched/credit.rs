//! `sched=credit`: shares any number of CPUs among any number of vCPUs by weight.
//!
//! Each CPU has a [run queue](super::queue) of its own. These rules connect the queues:
//!
//! * **Waking takes no lock.** The CPU that wakes a vCPU chooses a CPU for it: the one that it ran on if that is idle,
//!   else an idle one, else the one that it ran on or, if vCPUs wait there, one where fewer wait. It sets the vCPU's
//!   bit in that CPU's [inbox](super::inbox) and has the CPU interrupted; that CPU empties its inbox when it next
//!   reschedules. So a vCPU can be woken with any lock held, and a doorbell costs two atomic writes.
//! * **An idle CPU steals** the next vCPU of the longest queue.
//! * **A CPU where vCPUs wait passes them on**: at once, the next one to an idle CPU; and when a slice ends, the next
//!   one to the CPU whose running vCPU has the most virtual time, if the difference is more than a slice and the cost
//!   of a move. That makes shares hold across CPUs without a tick on CPUs where none waits. No other vCPU moves: a move
//!   costs a VMOVP.
//! * **An offline CPU** is not chosen any more, and its inbox is closed. The vCPU that runs there stops at its next
//!   reschedule, as if its affinity excluded the CPU; when the CPU then asks for the next vCPU, it passes on all that
//!   wait there.
//!
//! A vCPU is in one place at a time: current on a CPU, in a queue, in an inbox, or asleep. Its `RunState` and its inbox
//! bit say where; the first two places are guarded by the queue's lock. No two queues are locked at once.

use super::cpu_set::CpuSet;
use super::entity::{DEFAULT_WEIGHT, Entity};
use super::inbox::Inbox;
use super::policy::{AddError, Scheduled, Scheduler, Verdict};
use super::queue::{From, Queue, Slices};
use super::race_point::race_point;
use super::random::xorshift;
use crate::ids::CpuId;
use crate::sync::{Lock, Rank};
use crate::trace::{Event, count};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// The most vCPUs.
const SLOTS: usize = 1024;
const NEVER: u64 = u64::MAX;

/// The parameters of the scheduler.
pub struct Settings {
    /// Slice and period.
    pub slices: Slices,
    /// For tests: how often, in ticks and over all CPUs, a vCPU is moved to a random CPU.
    pub torture: Option<u64>,
    /// Interrupts a CPU so that it reschedules: sends an SGI.
    pub kick: Box<dyn Fn(CpuId) + Send + Sync>,
}

struct Cpu<V: Scheduled> {
    queue: Lock<Queue<V>>,
    inbox: Inbox,
    /// It has to reschedule.
    resched: AtomicBool,
    /// How many vCPUs wait that could run.
    waiting: AtomicUsize,
    /// When it has to reschedule; [`NEVER`] for no time.
    next_resched_at: AtomicU64,
    /// The vtime of the current vCPU when it was last charged, when that was, and its weight (0: no vCPU runs). For the
    /// choices of other CPUs.
    front: AtomicU64,
    since: AtomicU64,
    weight: AtomicU32,
}

/// The credit scheduler.
pub struct Credit<V: Scheduled> {
    cpus: Vec<Cpu<V>>,
    /// Every vCPU, at the index that its entity holds.
    slots: Vec<Lock<Option<Arc<V>>>>,
    /// The CPUs that can run vCPUs.
    online: CpuSet,
    /// The online CPUs that run none.
    idle: CpuSet,
    settings: Settings,
    /// The furthest of the clocks of all queues.
    present: AtomicU64,
    /// What moving a vCPU to another CPU costs, in ticks: a running mean.
    move_cost: AtomicU64,
    random: AtomicU64,
}

impl<V: Scheduled> Credit<V> {
    /// A scheduler for `cpus` CPUs, all offline.
    #[must_use]
    pub fn new(cpus: usize, settings: Settings) -> Credit<V> {
        let cpu = || Cpu {
            queue: Lock::new(Rank::RunQueue, Queue::new()),
            inbox: Inbox::new(SLOTS),
            resched: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            next_resched_at: AtomicU64::new(NEVER),
            front: AtomicU64::new(0),
            since: AtomicU64::new(0),
            weight: AtomicU32::new(0),
        };
        Credit {
            cpus: (0..cpus).map(|_| cpu()).collect(),
            slots: (0..SLOTS).map(|_| Lock::new(Rank::RunQueue, None)).collect(),
            online: CpuSet::none(),
            idle: CpuSet::none(),
            settings,
            present: AtomicU64::new(0),
            move_cost: AtomicU64::new(0),
            random: AtomicU64::new(0x9e37_79b9_7f4a_7c15),
        }
    }

    fn cpu(&self, cpu: CpuId) -> &Cpu<V> {
        &self.cpus[cpu.index()]
    }

    fn present(&self) -> u64 {
        self.present.load(Ordering::Relaxed)
    }

    /// The CPUs other than `than`, upwards from it and wrapping.
    fn others(&self, than: CpuId) -> impl Iterator<Item = CpuId> {
        let count = self.cpus.len();
        (1..count).map(move |step| CpuId(((than.index() + step) % count) as u16))
    }

    /// Puts `vcpu`, which is in no place, into the inbox of `to`, or of another CPU if `to` goes offline. Returns the
    /// CPU.
    fn post(&self, vcpu: &V, to: CpuId) -> CpuId {
        let mut to = to;
        while !self.cpu(to).inbox.post(vcpu.entity().slot()) {
            to = self.allowed(vcpu.entity(), to);
        }
        self.cpu(to).resched.store(true, Ordering::SeqCst);
        to
    }

    /// Chooses an idle CPU for `entity`, `near` first, and removes it from the idle CPUs so that no other CPU chooses
    /// it.
    fn claim_idle(&self, entity: &Entity, near: CpuId) -> Option<CpuId> {
        if entity.affinity.has(near) && self.idle.take(near) {
            return Some(near);
        }
        while let Some(cpu) = self.idle.common(&entity.affinity, near) {
            if self.idle.take(cpu) {
                return Some(cpu);
            }
        }
        None
    }

    fn may_run(&self, entity: &Entity, cpu: CpuId) -> bool {
        entity.affinity.has(cpu) && self.online.has(cpu)
    }

    /// A CPU where it may run: `cpu` if possible. If its affinity has no online CPU, any online CPU.
    fn allowed(&self, entity: &Entity, cpu: CpuId) -> CpuId {
        if self.may_run(entity, cpu) {
            return cpu;
        }
        let anywhere = || self.online.common(&self.online, cpu);
        self.online.common(&entity.affinity, cpu).or_else(anywhere).unwrap_or(cpu)
    }

    /// The online CPUs other than `cpu`.
    fn online_but(&self, cpu: CpuId) -> impl Iterator<Item = CpuId> {
        self.others(cpu).filter(|&other| self.online.has(other))
    }

    /// Moves all vCPUs that wait on this CPU, which is offline, to other CPUs.
    #[cold]
    fn evacuate(&self, cpu: CpuId, now: u64) {
        let this = self.cpu(cpu);
        self.idle.take(cpu);
        this.inbox.empty(|slot| self.admit(this, slot, now));
        loop {
            let gone = {
                let mut queue = this.queue.lock();
                // Includes those that have used up their cap.
                let taken = queue.take(u64::MAX, |_| true);
                self.publish(this, &queue, now);
                taken
            };
            let Some(vcpu) = gone else { return };
            let near = self.allowed(vcpu.entity(), cpu);
            let to = self.claim_idle(vcpu.entity(), near).unwrap_or_else(|| self.shortest(vcpu.entity(), near));
            count(cpu, Event::Evacuate);
            let to = self.hand_over(&vcpu, to);
            (self.settings.kick)(to);
        }
    }

    /// The CPU where the fewest vCPUs wait, `near` if it is one of them.
    fn shortest(&self, entity: &Entity, near: CpuId) -> CpuId {
        let waiting = |cpu: CpuId| self.cpu(cpu).waiting.load(Ordering::Relaxed);
        let (mut least, mut best) = (waiting(near), near);
        for other in self.others(near) {
            if least == 0 {
                break;
            }
            if self.may_run(entity, other) && waiting(other) < least {
                (least, best) = (waiting(other), other);
            }
        }
        best
    }

    /// Moves the vCPUs in the inbox of a CPU into its queue.
    fn receive(&self, this: &Cpu<V>, now: u64) {
        this.inbox.take(|slot| self.admit(this, slot, now));
    }

    /// Inserts the vCPU in `slot` into the queue of a CPU.
    fn admit(&self, this: &Cpu<V>, slot: usize, now: u64) {
        if let Some(vcpu) = self.slots.get(slot).and_then(|slot| slot.lock().clone()) {
            // A vCPU that another CPU passed on may be further behind the clock than one that slept.
            let from = if vcpu.entity().moving.swap(false, Ordering::SeqCst) { From::Elsewhere } else { From::Sleep };
            this.queue.lock().insert(vcpu, from, now, self.present(), &self.settings.slices);
        }
    }

    /// Publishes the state of a CPU's queue for other CPUs and for the timer. Called with the queue's lock held.
    fn publish(&self, this: &Cpu<V>, queue: &Queue<V>, now: u64) {
        self.present.fetch_max(queue.clock(), Ordering::Relaxed);
        this.waiting.store(queue.eligible(now), Ordering::SeqCst);
        if let Some(current) = queue.current() {
            this.front.store(current.entity().vtime(), Ordering::Relaxed);
            this.since.store(now, Ordering::Relaxed);
        }
        this.weight.store(queue.current().map_or(0, |current| current.entity().weight()), Ordering::Relaxed);
        let mut at = queue.next_resched_at(now, &self.settings.slices).unwrap_or(NEVER);
        if let (Some(torture), Some(_)) = (self.settings.torture, queue.current()) {
            // So that over all CPUs one vCPU is moved every `torture` ticks.
            at = at.min(now + torture * self.cpus.len() as u64);
        }
        this.next_resched_at.store(at, Ordering::Relaxed);
    }

    /// The vtime of the current vCPU of `cpu` at `now`, estimated without its lock; `None` if no vCPU runs there.
    fn front(&self, cpu: CpuId, now: u64) -> Option<u64> {
        let cpu = self.cpu(cpu);
        let weight = u64::from(cpu.weight.load(Ordering::Relaxed));
        let ran = now.saturating_sub(cpu.since.load(Ordering::Relaxed));
        (weight != 0).then(|| {
            let weighted = ran.saturating_mul(u64::from(DEFAULT_WEIGHT)) / weight;
            cpu.front.load(Ordering::Relaxed).saturating_add(weighted)
        })
    }

    /// Takes the next vCPU of the longest queue for `cpu`, or of another queue if none of those may run on `cpu`.
    fn steal(&self, cpu: CpuId, now: u64) -> Option<Arc<V>> {
        let mut victims: Option<(usize, CpuId)> = None;
        for other in self.others(cpu) {
            let waiting = self.cpu(other).waiting.load(Ordering::SeqCst);
            if waiting > 0 && victims.is_none_or(|(most, _)| waiting > most) {
                victims = Some((waiting, other));
            }
        }
        let longest = victims?.1;
        let from_longest = self.take_from(longest, cpu, now);
        // Those that wait there may have an affinity that excludes this CPU.
        let stolen = from_longest.or_else(|| {
            self.others(cpu)
                .filter(|&other| other != longest && self.cpu(other).waiting.load(Ordering::SeqCst) > 0)
                .find_map(|other| self.take_from(other, cpu, now))
        })?;
        count(cpu, Event::Steal);
        Some(stolen)
    }

    /// Takes the next vCPU of the queue of `victim` that may run on `thief`.
    fn take_from(&self, victim: CpuId, thief: CpuId, now: u64) -> Option<Arc<V>> {
        let mut queue = self.cpu(victim).queue.lock();
        let taken = queue.take(now, |vcpu| vcpu.entity().affinity.has(thief));
        self.cpu(victim).waiting.store(queue.eligible(now), Ordering::SeqCst);
        taken
    }

    /// Whether a vCPU waits here while another CPU is idle.
    fn has_work_for_idle(&self, cpu: &Cpu<V>) -> bool {
        cpu.waiting.load(Ordering::SeqCst) > 0 && !self.idle.is_empty()
    }

    /// Passes vCPUs that wait here on to idle CPUs where they may run.
    #[cold]
    fn push_to_idle(&self, cpu: CpuId, now: u64) {
        let this = self.cpu(cpu);
        while self.has_work_for_idle(this) {
            let given = {
                let mut queue = this.queue.lock();
                let fits = |vcpu: &V| self.idle.common(&vcpu.entity().affinity, cpu).is_some();
                let taken = queue.take(now, fits);
                self.publish(this, &queue, now);
                taken
            };
            let Some(vcpu) = given else { return };
            // If the idle CPU has been claimed meanwhile, the vCPU comes back to this CPU.
            let to = self.claim_idle(vcpu.entity(), cpu).unwrap_or(cpu);
            let to = self.hand_over(&vcpu, to);
            if to == cpu {
                return;
            }
            count(cpu, Event::Push);
            (self.settings.kick)(to);
        }
    }

    /// Passes the next vCPU that waits here on to the CPU whose current vCPU has the most vtime, if that is worth a
    /// move.
    fn balance(&self, cpu: CpuId, now: u64) {
        let threshold = self.settings.slices.slice + self.move_cost.load(Ordering::Relaxed);
        let furthest = self.others(cpu).filter_map(|other| Some((self.front(other, now)?, other))).max();
        let Some((front, to)) = furthest else { return };
        let given = {
            let this = self.cpu(cpu);
            let mut queue = this.queue.lock();
            let far_behind = |vcpu: &V| {
                let entity = vcpu.entity();
                entity.affinity.has(to) && front.saturating_sub(entity.vtime()) > threshold
            };
            let taken = queue.take(now, far_behind);
            self.publish(this, &queue, now);
            taken
        };
        if let Some(vcpu) = given {
            count(cpu, Event::Push);
            let to = self.hand_over(&vcpu, to);
            (self.settings.kick)(to);
        }
    }

    /// Puts a vCPU that was taken from a queue into the inbox of `to`. Returns the CPU that has it then.
    fn hand_over(&self, vcpu: &V, to: CpuId) -> CpuId {
        vcpu.entity().moving.store(true, Ordering::SeqCst);
        self.post(vcpu, to)
    }

    fn random_cpu(&self, entity: &Entity) -> CpuId {
        let x = xorshift(self.random.load(Ordering::Relaxed));
        self.random.store(x, Ordering::Relaxed);
        self.allowed(entity, CpuId((x % self.cpus.len() as u64) as u16))
    }

    /// Whether the current vCPU of `cpu` is due to be moved at random.
    fn torture_is_due(&self, cpu: CpuId, now: u64) -> bool {
        let Some(every) = self.settings.torture else { return false };
        let queue = self.cpu(cpu).queue.lock();
        queue.current().is_some() && queue.has_run(now) >= every * self.cpus.len() as u64
    }
}

impl<V: Scheduled + Send + Sync> Scheduler<V> for Credit<V> {
    fn name(&self) -> &'static str {
        "credit"
    }

    fn shares_cpus(&self) -> bool {
        true
    }

    fn bring_online(&self, cpu: CpuId) {
        self.cpu(cpu).inbox.open();
        self.online.add(cpu);
        self.idle.add(cpu);
    }

    fn take_offline(&self, cpu: CpuId) -> Result<(), Arc<V>> {
        let bound = |vcpu: &Arc<V>| !self.online_but(cpu).any(|other| vcpu.entity().affinity.has(other));
        if let Some(vcpu) = self.slots.iter().find_map(|slot| slot.lock().clone().filter(bound)) {
            return Err(vcpu);
        }
        self.online.take(cpu);
        self.idle.take(cpu);
        self.cpu(cpu).inbox.close();
        self.set_need_resched(cpu);
        Ok(())
    }

    fn add(&self, vcpu: &Arc<V>, home: CpuId) -> Result<(), AddError> {
        if home.index() >= self.cpus.len() {
            return Err(AddError::NoSuchCpu(home));
        }
        for (index, slot) in self.slots.iter().enumerate() {
            let mut slot = slot.lock();
            if slot.is_none() {
                vcpu.entity().set_slot(Some(index));
                vcpu.entity().set_cpu(home);
                *slot = Some(vcpu.clone());
                return Ok(());
            }
        }
        Err(AddError::Full)
    }

    fn remove(&self, vcpu: &V) {
        if let Some(slot) = self.slots.get(vcpu.entity().slot()) {
            *slot.lock() = None;
        }
        vcpu.entity().set_slot(None);
    }

    fn place(&self, vcpu: &V) -> CpuId {
        let entity = vcpu.entity();
        let near = self.allowed(entity, entity.cpu());
        let to = match self.settings.torture {
            Some(_) => self.random_cpu(entity),
            None => self.claim_idle(entity, near).unwrap_or_else(|| self.shortest(entity, near)),
        };
        self.post(vcpu, to)
    }

    fn next(&self, cpu: CpuId, now: u64) -> Option<Arc<V>> {
        let this = self.cpu(cpu);
        loop {
            this.resched.store(false, Ordering::SeqCst);
            if !self.online.has(cpu) {
                self.evacuate(cpu, now);
                return None;
            }
            self.receive(this, now);
            let mut queue = this.queue.lock();
            let mut next = queue.take(now, |_| true);
            if next.is_none() {
                drop(queue);
                race_point();
                // Marked idle before it searches the other queues: a vCPU that is queued there from now on is found by
                // the search, or its CPU sees that this one is idle. Otherwise it would wait for a slice while this CPU
                // is idle.
                self.idle.add(cpu);
                race_point();
                let stolen = self.steal(cpu, now);
                queue = this.queue.lock();
                if let Some(stolen) = stolen {
                    // Through the queue, which limits its vtime by the clock.
                    queue.insert(stolen, From::Elsewhere, now, self.present(), &self.settings.slices);
                    next = queue.take(now, |_| true);
                }
            }
            if let Some(vcpu) = next {
                self.idle.take(cpu);
                vcpu.entity().set_cpu(cpu);
                vcpu.entity().end_wait(now);
                queue.start(vcpu.clone(), now);
                self.publish(this, &queue, now);
                drop(queue);
                let runs = vcpu.run_state().start_running();
                debug_assert!(runs, "what waits in a queue is runnable");
                if self.has_work_for_idle(this) {
                    self.push_to_idle(cpu, now);
                }
                return Some(vcpu);
            }
            self.publish(this, &queue, now);
            drop(queue);
            race_point();
            // Other CPUs may have put vCPUs into its inbox since it was marked idle.
            if !this.resched.load(Ordering::SeqCst) {
                return None;
            }
        }
    }

    fn restart_slice(&self, cpu: CpuId, now: u64) {
        let this = self.cpu(cpu);
        let mut queue = this.queue.lock();
        queue.restart_slice(now);
        self.publish(this, &queue, now);
    }

    fn exclude(&self, cpu: CpuId, ticks: u64) {
        self.cpu(cpu).queue.lock().exclude(ticks);
    }

    fn uncharged(&self, cpu: CpuId, vcpu: &V, now: u64) -> u64 {
        self.cpu(cpu).queue.lock().uncharged(vcpu, now)
    }

    fn should_resched(&self, cpu: CpuId, now: u64) -> Verdict {
        let this = self.cpu(cpu);
        this.resched.store(false, Ordering::SeqCst);
        // First the clock, then the vCPUs whose vtime is limited by it.
        this.queue.lock().charge(now, &self.settings.slices);
        self.receive(this, now);
        if self.torture_is_due(cpu, now) {
            return Verdict::Switch;
        }
        let slices = &self.settings.slices;
        let mut queue = this.queue.lock();
        let waiting = queue.eligible(now);
        this.waiting.store(waiting, Ordering::SeqCst);
        let over = waiting > 0 && queue.slice_is_over(now, slices);
        if over || self.has_work_for_idle(this) {
            drop(queue);
            self.push_to_idle(cpu, now);
            if over && this.waiting.load(Ordering::SeqCst) > 0 {
                self.balance(cpu, now);
            }
            // A vCPU that the other CPU did not take has come back to the inbox. It has to be in the queue when the time
            // of the next reschedule is computed: without it, it would wait until the current vCPU exits.
            self.receive(this, now);
            queue = this.queue.lock();
        }
        let excluded = queue.current().is_some_and(|current| !self.may_run(current.entity(), cpu));
        if excluded || queue.makes_way(now, slices) {
            return Verdict::Switch;
        }
        queue.renew(now, slices);
        self.publish(this, &queue, now);
        Verdict::Continue
    }

    fn stop(&self, cpu: CpuId, now: u64) -> Option<Arc<V>> {
        let this = self.cpu(cpu);
        let stopped = this.queue.lock().stop(now, &self.settings.slices);
        // `next`, which follows, publishes the rest.
        this.weight.store(0, Ordering::Relaxed);
        stopped
    }

    fn requeue(&self, cpu: CpuId, vcpu: Arc<V>, now: u64) {
        let entity = vcpu.entity();
        entity.begin_wait(now);
        let to = match self.settings.torture {
            Some(_) => self.random_cpu(entity),
            None => self.allowed(entity, cpu),
        };
        if to != cpu {
            let to = self.hand_over(&vcpu, to);
            (self.settings.kick)(to);
            return;
        }
        self.cpu(cpu).queue.lock().insert(vcpu, From::Here, now, self.present(), &self.settings.slices);
    }

    fn current(&self, cpu: CpuId) -> Option<Arc<V>> {
        self.cpus.get(cpu.index())?.queue.lock().current().cloned()
    }

    fn needs_resched(&self, cpu: CpuId) -> bool {
        self.cpu(cpu).resched.load(Ordering::Relaxed)
    }

    fn set_need_resched(&self, cpu: CpuId) {
        self.cpu(cpu).resched.store(true, Ordering::SeqCst);
    }

    fn is_contended(&self, cpu: CpuId) -> bool {
        self.cpu(cpu).waiting.load(Ordering::Relaxed) > 0
    }

    fn next_resched_at(&self, cpu: CpuId) -> Option<u64> {
        Some(self.cpu(cpu).next_resched_at.load(Ordering::Relaxed)).filter(|&at| at != NEVER)
    }

    fn record_move_cost(&self, ticks: u64) {
        let mean = self.move_cost.load(Ordering::Relaxed);
        self.move_cost.store(mean - mean / 8 + ticks / 8, Ordering::Relaxed);
    }

    fn for_each_waiting(&self, cpu: CpuId, visit: &mut dyn FnMut(&Arc<V>)) {
        if let Some(cpu) = self.cpus.get(cpu.index()) {
            cpu.queue.lock().for_each(visit);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sched::testing::TestVcpu;

    #[test]
    fn a_vcpu_that_no_idle_cpu_took_waits_with_a_time_to_reschedule() {
        let slices = Slices { slice: 1000, period: 10_000 };
        let credit = Credit::new(2, Settings { slices, torture: None, kick: Box::new(|_| {}) });
        credit.bring_online(CpuId(0));
        let vcpus = ["runs", "waits"].map(|name| Arc::new(TestVcpu::named(name)));
        for vcpu in &vcpus {
            vcpu.entity.affinity.set([CpuId(0), CpuId(1)].into_iter());
            credit.add(vcpu, CpuId(0)).unwrap();
        }
        let wake = |vcpu: &TestVcpu| assert!(vcpu.run.power_on() && credit.place(vcpu) == CpuId(0));
        wake(&vcpus[0]);
        assert_eq!(credit.next(CpuId(0), 0).unwrap().name, "runs");
        wake(&vcpus[1]);
        // CPU 1 is taken for idle, but takes no vCPU any more: what is passed on to it comes back.
        credit.idle.add(CpuId(1));
        assert_eq!(credit.should_resched(CpuId(0), 10), Verdict::Continue);
        assert_eq!(credit.next_resched_at(CpuId(0)), Some(1000), "at the end of the slice");
        let mut waiting = std::vec::Vec::new();
        credit.for_each_waiting(CpuId(0), &mut |vcpu| waiting.push(vcpu.name));
        assert_eq!(waiting, ["waits"]);
    }
}
