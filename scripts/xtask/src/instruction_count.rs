//! Counts the instructions in EL2 for waking a vCPU, switching between two vCPUs, and moving a vPE.
//!
//! The count is made from outside, without counters in the hypervisor or the guest. QEMU executes one instruction at a time and
//! logs the address of each within the hypervisor's image (`one-insn-per-tb`, `-d exec`) and, as trace events, interrupt
//! acknowledges and writes of GICR_VPENDBASER. On QEMU's clock of instructions (`-icount`), runs differ only in the times at which
//! commands are typed to the guest.
//!
//! The instructions of a CPU between an exception from a guest (or its own WFI) and the ERET to a guest (or its next WFI) are a
//! *stay* in EL2. Its purpose follows from the events in it: a doorbell that is acknowledged, a vPE that stops being resident,
//! another that becomes resident.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use object::{Object as _, ObjectSymbol as _};

use crate::fail::{Doing, Failure, Outcome};
use crate::qemu::{Disk, Machine};
use crate::qmp::Qmp;
use crate::session::{Echo, End, Event, Input, Session};
use crate::{image, paths};

/// Number of CPUs of the machine.
const CPUS: u32 = 2;

/// What QEMU logs while the guest executes a command.
const LOGGED: &str = "exec,trace:gicv3_icc_iar1_read,trace:gicv3_redist_write";

/// Where QEMU loads the image, and an address beyond its end.
const IMAGE: u64 = 0x4020_0000;
const IMAGE_END: u64 = 0x4040_0000;

const ERET: u32 = 0xd69f_03e0;
const WFI: u32 = 0xd503_207f;

/// Offset of GICR_VPENDBASER in a redistributor; in it, Valid and the address of the pending table.
const VPENDBASER: u64 = 0x2_0078;
const VALID: u64 = 1 << 63;
const TABLE: u64 = 0xf_ffff_ffff_0000;

const LPI: u64 = 8192;

/// The function that moves a vPE: it posts VMOVP and waits for it.
const MOVE: &str = "::migrate_vpe";
/// The function that stops a vCPU: the first that a switch calls after the decision.
const STOP: &str = "Credit<V> as doorward::sched::policy::Scheduler<V>>::stop";

/// The purpose of a stay in EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// From a doorbell for a vCPU whose CPU is idle to that vCPU's first instruction.
    Wake,
    /// From a doorbell for a vCPU whose CPU runs another vCPU, which is preempted, to its first instruction.
    Displace,
    /// From the decision to switch to the first instruction of the other vCPU; both have a vPE.
    Switch,
    /// From the exit of a vCPU to the first instruction of another: includes what led to the decision, such as a timer
    /// interrupt.
    ExitToSwitch,
    /// A vCPU blocks and its CPU becomes idle.
    Sleep,
    /// One VMOVP. It is not counted in the stays that contain it.
    Move,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Purpose::Wake => "wake, CPU idle",
            Purpose::Displace => "wake, CPU busy",
            Purpose::Switch => "switch",
            Purpose::ExitToSwitch => "exit and switch",
            Purpose::Sleep => "sleep",
            Purpose::Move => "VMOVP",
        })
    }
}

/// Numbers of instructions by purpose, and by purpose and address.
#[derive(Default)]
pub struct Costs {
    stays: BTreeMap<Purpose, Vec<u64>>,
    places: BTreeMap<Purpose, BTreeMap<u64, u64>>,
}

impl Costs {
    fn sorted(&self, purpose: Purpose) -> Vec<u64> {
        let mut costs = self.stays.get(&purpose).cloned().unwrap_or_default();
        costs.sort_unstable();
        costs
    }

    /// The median, if there are at least `least` stays.
    pub fn median(&self, purpose: Purpose, least: usize) -> Option<u64> {
        let costs = self.sorted(purpose);
        (costs.len() >= least.max(1)).then(|| costs[costs.len() / 2])
    }

    /// The least.
    pub fn least(&self, purpose: Purpose) -> Option<u64> {
        self.sorted(purpose).first().copied()
    }

    /// Prints how often each was seen, and its least, median and most instructions.
    pub fn print(&self) {
        for purpose in self.stays.keys() {
            let costs = self.sorted(*purpose);
            let (count, middle) = (costs.len(), costs[costs.len() / 2]);
            println!(
                "   {purpose:<15} {count:>5} times  {:>6} {middle:>6} {:>6} instructions",
                costs[0],
                costs[count - 1]
            );
        }
    }

    /// Prints the instructions by function, with the functions that were inlined into it.
    fn print_functions(&self) -> Outcome {
        let elf = paths::elf();
        let symbols = addr2line::Loader::new(&elf).map_err(|why| Failure::new(format!("{}: {why}", elf.display())))?;
        for (purpose, places) in &self.places {
            let mut functions: BTreeMap<String, u64> = BTreeMap::new();
            for (offset, count) in places {
                *functions.entry(name(&symbols, *offset)).or_default() += count;
            }
            let mut functions: Vec<_> = functions.into_iter().collect();
            functions.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            let stays = self.stays.get(purpose).map_or(1, Vec::len);
            println!("   {purpose}, mean of {stays}:");
            for (function, count) in functions.iter() {
                println!("   {:>9.1}  {function}", *count as f64 / stays as f64);
            }
        }
        Ok(())
    }
}

/// The function at an offset, and the functions that it was inlined into.
fn name(symbols: &addr2line::Loader, offset: u64) -> String {
    let mut names = Vec::new();
    if let Ok(mut frames) = symbols.find_frames(offset) {
        while let Ok(Some(frame)) = frames.next() {
            let name = frame.function.and_then(|function| function.demangle().ok().map(|name| name.into_owned()));
            names.extend(name.map(|name| {
                let name = name.split_once("::h").map_or(name.as_str(), |(name, _)| name);
                name.rsplit("::").take(2).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("::")
            }));
        }
    }
    if names.is_empty() { symbols.find_symbol(offset).unwrap_or("?").to_owned() } else { names.join(" < ") }
}

/// The hypervisor's code, and the functions that are searched for.
struct Image {
    code: Vec<u8>,
    moves: Range<u64>,
    stop: Range<u64>,
}

impl Image {
    fn read() -> Outcome<Self> {
        let code = std::fs::read(paths::image()).doing("reading the image")?;
        let elf = std::fs::read(paths::elf()).doing("reading the image's symbols")?;
        let file = object::File::parse(&*elf).map_err(|error| Failure::new(format!("the image's symbols: {error}")))?;
        let find = |wanted: &str| {
            let mut symbols = file.symbols();
            let found = symbols.find(|symbol| {
                symbol.name().is_ok_and(|name| {
                    let name = addr2line::demangle_auto(name.into(), None);
                    name.split_once(wanted).is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with("::h"))
                })
            });
            let found = found.ok_or_else(|| Failure::new(format!("the image has no function `{wanted}`")))?;
            Ok(found.address()..found.address() + found.size())
        };
        let (moves, stop) = (find(MOVE)?, find(STOP)?);
        Ok(Self { code, moves, stop })
    }

    fn instruction(&self, offset: u64) -> u32 {
        let at = offset as usize;
        self.code.get(at..at + 4).map_or(0, |bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
}

/// A stay in EL2 so far.
#[derive(Default)]
struct Stay {
    from_guest: bool,
    /// The offsets of the instructions in the image.
    instructions: Vec<u64>,
    doorbell: bool,
    left: Option<u64>,
    entered: Option<u64>,
    /// The first and the last instruction of a move.
    moved: Option<(usize, usize)>,
    /// The first instruction of the switch.
    stopped: Option<usize>,
}

impl Stay {
    fn purpose(&self, to_guest: bool) -> Option<Purpose> {
        let switched = self.entered.is_some() && self.left.is_some() && self.entered != self.left;
        match (self.from_guest, self.doorbell, to_guest) {
            (false, true, true) if self.entered.is_some() => Some(Purpose::Wake),
            (true, true, true) if switched => Some(Purpose::Displace),
            (true, false, true) if switched => Some(Purpose::ExitToSwitch),
            (true, _, false) if self.left.is_some() => Some(Purpose::Sleep),
            _ => None,
        }
    }
}

enum Where {
    Unknown,
    Guest,
    El2(Stay),
}

/// Parses QEMU's log.
struct Reader<'a> {
    image: &'a Image,
    cpus: BTreeMap<u64, Where>,
    /// The CPU that executed last.
    latest: u64,
    costs: Costs,
}

impl<'a> Reader<'a> {
    fn new(image: &'a Image) -> Self {
        Self { image, cpus: BTreeMap::new(), latest: 0, costs: Costs::default() }
    }

    fn line(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("Trace ") {
            // `0: 0x7f… [cs_base/pc/flags/cflags] symbol`
            let cpu = rest.split_once(':').and_then(|(cpu, _)| cpu.parse().ok());
            let pc = rest.split('/').nth(1).and_then(|pc| u64::from_str_radix(pc, 16).ok());
            if let (Some(cpu), Some(pc)) = (cpu, pc.filter(|pc| (IMAGE..IMAGE_END).contains(pc))) {
                self.executed(cpu, pc - IMAGE);
            }
        } else if line.starts_with("Stopped execution of TB chain before") {
            // The last instruction was logged but not executed, as the budget of instructions was used up. It is logged again.
            if let Some(Where::El2(stay)) = self.cpus.get_mut(&self.latest) {
                stay.instructions.pop();
            }
        } else if let Some(rest) = line.strip_prefix("gicv3_icc_iar1_read ") {
            if let (Some(Where::El2(stay)), Some(LPI..)) = (self.cpu(rest, "cpu"), after(rest, "value")) {
                stay.doorbell = true;
            }
        } else if let Some(rest) = line.strip_prefix("gicv3_redist_write ")
            && after(rest, "offset") == Some(VPENDBASER)
            && let (Some(Where::El2(stay)), Some(data)) = (self.cpu(rest, "redistributor"), after(rest, "data"))
        {
            *(if data & VALID != 0 { &mut stay.entered } else { &mut stay.left }) = Some(data & TABLE);
        }
    }

    fn cpu(&mut self, text: &str, name: &str) -> Option<&mut Where> {
        self.cpus.get_mut(&after(text, name)?)
    }

    fn executed(&mut self, cpu: u64, offset: u64) {
        self.latest = cpu;
        let place = self.cpus.entry(cpu).or_insert(Where::Unknown);
        if matches!(place, Where::Guest) {
            *place = Where::El2(Stay { from_guest: true, ..Stay::default() });
        }
        let instruction = self.image.instruction(offset);
        if let Where::El2(stay) = place {
            if self.image.moves.contains(&offset) {
                let now = stay.instructions.len();
                stay.moved = Some((stay.moved.map_or(now, |(first, _)| first), now));
            }
            if self.image.stop.contains(&offset) {
                stay.stopped = stay.stopped.or(Some(stay.instructions.len()));
            }
            stay.instructions.push(offset);
        }
        let next = match instruction {
            ERET => Where::Guest,
            WFI => Where::El2(Stay::default()),
            _ => return,
        };
        if let Where::El2(stay) = std::mem::replace(place, next) {
            self.ended(&stay, instruction == ERET);
        }
    }

    fn ended(&mut self, stay: &Stay, to_guest: bool) {
        let all = 0..stay.instructions.len();
        let moved = stay.moved.map_or(0..0, |(first, last)| first..last + 1);
        if !moved.is_empty() {
            self.add(Purpose::Move, stay, moved.clone(), 0..0);
        }
        let Some(purpose) = stay.purpose(to_guest) else { return };
        self.add(purpose, stay, all.clone(), moved.clone());
        if let (Purpose::ExitToSwitch, Some(stopped)) = (purpose, stay.stopped) {
            self.add(Purpose::Switch, stay, stopped..all.end, moved);
        }
    }

    /// Adds the instructions `what` of a stay, except `without`.
    fn add(&mut self, purpose: Purpose, stay: &Stay, what: Range<usize>, without: Range<usize>) {
        let places = self.costs.places.entry(purpose).or_default();
        let mut count = 0;
        for at in what.filter(|at| !without.contains(at)) {
            *places.entry(stay.instructions[at]).or_default() += 1;
            count += 1;
        }
        self.costs.stays.entry(purpose).or_default().push(count);
    }
}

/// The number behind `name`.
fn after(text: &str, name: &str) -> Option<u64> {
    let mut words = text.split_whitespace();
    words.find(|word| *word == name)?;
    u64::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok()
}

/// The guest's commands: wake the other vCPUs, then spin on all of them.
const COMMANDS: [&str; 2] = ["w", "s"];

/// Runs `vcpus` vCPUs and one that wakes them on two CPUs, and counts. Logs go to `folder`.
pub fn measure(folder: &Path, vcpus: u16, cpu: &str, hv: &str, functions: bool) -> Outcome<Costs> {
    std::fs::create_dir_all(folder).doing(format_args!("creating {}", folder.display()))?;
    let kernel = folder.join("kernel");
    image::build_guest("guest-pace", &kernel)?;
    let (log, console) = (folder.join("qemu.log"), folder.join("console.log"));
    let socket = std::env::temp_dir().join(format!("doorward-instructions-{}", std::process::id()));
    let words = ["-icount", "shift=0,sleep=off", "-dfilter", &format!("{IMAGE:#x}..{:#x}", IMAGE_END - 1)];
    let machine = Machine {
        kernel: Some(kernel),
        initrd: None,
        disk: Disk::None,
        smp: CPUS,
        cpu: cpu.into(),
        hv: format!("sched=credit sched_credit_tslice_ms=1 vwfi=trap dom0_max_vcpus={} {hv}", vcpus + 1),
        log: Some(log.clone()),
        qmp: Some(socket.clone()),
        extra: words.map(str::to_owned).to_vec(),
        ..Machine::default()
    };
    let limit = Some(Duration::from_secs(300));
    let mut session = Session::start(machine.batch()?, Echo::Off, Input::Typed, Some(&console), limit)?;
    let played = play(&mut session, &socket);
    drop(session);
    let _ = std::fs::remove_file(&socket);
    played.map_err(|failure| Failure::new(format!("{} ({})", failure.text, console.display())))?;

    let image = Image::read()?;
    let mut reader = Reader::new(&image);
    let file = std::fs::File::open(&log).doing(format_args!("opening {}", log.display()))?;
    for line in BufReader::with_capacity(1 << 20, file).split(b'\n') {
        reader.line(&String::from_utf8_lossy(&line.doing("reading QEMU's log")?));
    }
    let _ = std::fs::remove_file(&log);
    if functions {
        reader.costs.print_functions()?;
    }
    Ok(reader.costs)
}

/// Types the guest's commands, with QEMU's log on while it executes them.
fn play(session: &mut Session, socket: &Path) -> Outcome {
    let mut commands = COMMANDS.iter();
    loop {
        match session.next() {
            Event::Line(line) if line.starts_with("GUEST FAIL") => return Err(Failure::new(line)),
            Event::Line(line) if line.starts_with("GUEST READY") || line.starts_with("GUEST DONE") => {
                let mut qmp = Qmp::connect(socket)?;
                match commands.next() {
                    Some(command) => {
                        qmp.monitor("one-insn-per-tb on")?;
                        qmp.monitor(&format!("log {LOGGED}"))?;
                        session.type_in(command)?;
                    }
                    None => {
                        qmp.monitor("log none")?;
                        session.type_in("q")?;
                    }
                }
            }
            Event::Line(_) => {}
            Event::Ended(End::Off) => return Ok(()),
            Event::Ended(end) => return Err(Failure::new(format!("the guest did not finish: {end:?}"))),
        }
    }
}
