//! Consumption of the command queue.
//!
//! A command is executed `Timing::command` after the one before it, and CREADR moves past it at the same time. A fault
//! that is armed for the command happens first. Where GITS_TYPER.VMOVP is 0, a VMOVP is executed when every ITS in its
//! list has reached the same VMOVP. ITSs that reach different ones wait for each other for ever.

use super::command::{Command, Dialect};
use crate::faults::CommandFault;
use crate::machine::State;
use crate::memory::Use;

/// Result of a command.
pub(crate) enum Outcome {
    Done,
    Stall,
}

impl State {
    /// Sets the time at which the command at CREADR is executed, if there is a command and its time is not set.
    pub(crate) fn start(&mut self, its: usize) {
        let i = &mut self.its[its];
        if i.enabled && !i.stalled && i.creadr != i.cwriter && i.due.is_none() {
            i.due = Some(self.now + self.cfg.timing.command);
        }
    }

    /// Executes all commands that are due, on all ITSs.
    pub(crate) fn pump(&mut self) {
        loop {
            let mut progress = false;
            for its in 0..self.its.len() {
                progress |= self.step(its);
            }
            if !progress {
                break;
            }
        }
    }

    pub(crate) fn dialect(&self, its: usize) -> Dialect {
        let c = &self.cfg.its[its];
        match (c.virtual_lpis, c.vmapp) {
            (false, _) => Dialect::V3,
            (true, false) => Dialect::V4_0,
            (true, true) => Dialect::V4_1,
        }
    }

    /// Reads the four words at CREADR as the ITS does. With `flag`, unpublished stores are recorded as a violation.
    fn fetch(&mut self, its: usize, flag: bool) -> [u64; 4] {
        let i = &self.its[its];
        let (at, how) = (i.queue_base() + i.creadr, i.queue_snoop());
        let mut words = [0; 4];
        for (n, word) in words.iter_mut().enumerate() {
            let (value, trouble) = self.mem.device_read64(at + 8 * n as u64, how);
            *word = value;
            if flag && trouble.is_some() {
                self.flag_memory("5.3 the command queue", &format!("a command of ITS{its}"), at, trouble);
                return words;
            }
        }
        words
    }

    /// Whether the command at CREADR is due and the ITS executes commands.
    fn ready(&self, its: usize) -> bool {
        let i = &self.its[its];
        i.enabled
            && !i.stalled
            && !i.hung
            && i.due.is_some_and(|t| self.now >= t)
            && self.now >= i.late_until
            && i.creadr != i.cwriter
    }

    /// Executes one command if one is due. Returns whether anything changed.
    fn step(&mut self, its: usize) -> bool {
        if !self.ready(its) {
            return false;
        }
        let k = self.its[its].history.len();
        match self.its[its].plan.get(&k).copied() {
            Some(CommandFault::Stall) => {
                self.its[its].plan.remove(&k);
                self.its[its].stalled = true;
                return true;
            }
            Some(CommandFault::Hang) => return false,
            Some(CommandFault::Late { us }) => {
                self.its[its].plan.remove(&k);
                self.its[its].late_until = self.now + us * 1000;
                return us == 0;
            }
            None => {}
        }
        let words = self.fetch(its, false);
        let (command, _) = Command::decode(words, self.dialect(its));
        if let Command::Vmovp { .. } = command {
            if self.its[its].hangs_at_vmovp {
                self.its[its].hung = true;
                return false;
            }
            if !self.cfg.its[its].vmovp {
                return self.joint_vmovp(its, words, command);
            }
        }
        self.execute(its);
        true
    }

    /// Executes the command at CREADR and advances CREADR.
    fn execute(&mut self, its: usize) {
        let words = self.fetch(its, true);
        let (command, reserved) = Command::decode(words, self.dialect(its));
        if reserved.iter().any(|r| *r != 0) {
            let [a, b, c, d] = reserved;
            self.flag(
                command.section(),
                format!("ITS{its}: RES0 bits set: {a:#x} {b:#x} {c:#x} {d:#x} in {command:?}"),
            );
        }
        let outcome = match self.physical(its, command) {
            Some(outcome) => outcome,
            None => self.virtual_command(its, command),
        };
        match outcome {
            Outcome::Done => {
                let i = &mut self.its[its];
                i.history.push(command);
                i.creadr = (i.creadr + 32) % i.queue_size();
                i.due = (i.creadr != i.cwriter).then(|| i.due.unwrap_or(self.now) + self.cfg.timing.command);
            }
            Outcome::Stall => self.its[its].stalled = true,
        }
    }

    /// Executes a VMOVP on all ITSs in its list if all of them have reached it. Returns whether they had.
    fn joint_vmovp(&mut self, its: usize, words: [u64; 4], command: Command) -> bool {
        let Command::Vmovp { sequence, list, .. } = command else { return false };
        let number = self.its[its].number;
        if list >> number & 1 == 0 {
            self.report_vmovp(
                its,
                format!("ITS{its}: ITSList {list:#x} does not list the ITS itself (ITS_Number {number}): {command:?}"),
            );
        }
        let mut party = vec![its];
        for n in (0..16).filter(|n| list >> n & 1 == 1 && *n != number) {
            match (0..self.its.len()).find(|o| *o != its && self.its[*o].number == n && !self.cfg.its[*o].vmovp) {
                Some(other) => party.push(other),
                None => {
                    self.report_vmovp(
                        its,
                        format!("ITS{its}: ITSList {list:#x} lists ITS_Number {n}, which no ITS has: {command:?}"),
                    );
                    return false;
                }
            }
        }
        for other in party.iter().copied().skip(1) {
            let o = &self.its[other];
            if !self.ready(other) || o.hangs_at_vmovp || o.plan.contains_key(&o.history.len()) {
                return false;
            }
            let there = self.fetch(other, false);
            let (theirs, _) = Command::decode(there, self.dialect(other));
            match theirs {
                Command::Vmovp { .. } if there == words => {}
                Command::Vmovp { sequence: s, list: l, .. } if s == sequence || l >> number & 1 == 1 => {
                    // Neither ITS can continue.
                    self.report_vmovp(
                        its,
                        format!("ITS{its} and ITS{other} wait in different VMOVPs: {command:?} and {theirs:?}"),
                    );
                    return false;
                }
                // The other ITS has other commands to execute first. If it never reaches this one, this ITS hangs.
                _ => return false,
            }
        }
        for member in party {
            self.execute(member);
        }
        true
    }

    /// Records a violation of the VMOVP at CREADR, once.
    fn report_vmovp(&mut self, its: usize, what: String) {
        let here = self.its[its].history.len() as u64;
        if self.its[its].reported != Some(here) {
            self.its[its].reported = Some(here);
            self.flag("5.3 VMOVP", what);
        }
    }

    /// Records a violation if a store changes a command that is posted and not consumed yet.
    pub(crate) fn check_queue_store(&mut self, at: u64, len: u64) {
        for its in 0..self.its.len() {
            let i = &self.its[its];
            let (base, size) = (i.queue_base(), i.queue_size());
            if !i.enabled || at + len <= base || at >= base + size {
                continue;
            }
            let slot = (at - base) / 32 * 32;
            let ahead = (slot + size - i.creadr) % size;
            let given = (i.cwriter + size - i.creadr) % size;
            if ahead < given {
                let what =
                    format!("store to {at:#x}, a command in {} that is posted and not consumed", Use::Queue(its));
                self.flag("5.3 the command queue", what);
            }
        }
    }
}
