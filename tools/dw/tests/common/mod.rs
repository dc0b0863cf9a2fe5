//! A hypervisor that is none: a thread that speaks the protocol on a UNIX socket, with a handful of domains.
//!
//! It is written from docs/management.md and answers with what a test tells it. What it has been asked is kept.
#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use doorward_api::*;

static FOLDERS: AtomicU32 = AtomicU32::new(0);

/// What the hypervisor has.
#[derive(Default)]
pub struct State {
    pub domains: BTreeMap<u32, Dom>,
    pub next_id: u32,
    /// One line for each request, but those for parts of images.
    pub asked: Vec<String>,
    /// The images that have been sent, by domain and kind.
    pub images: BTreeMap<(u32, u8), (u64, Vec<u8>)>,
    pub log: Vec<u8>,
    /// Where the log begins that is still there.
    pub log_first: u64,
    pub uptime_us: u64,
    pub connections: u32,
}

#[derive(Clone)]
pub struct Dom {
    pub name: String,
    pub state: DomainState,
    pub vcpus: u32,
    pub memory: u64,
    pub cpu_time_ns: u64,
    pub exits: u64,
}

/// How the hypervisor misbehaves.
#[derive(Clone, Default)]
pub struct Manners {
    /// Requests of this kind are answered by this status and text.
    pub refuse: Option<(Kind, Status, &'static str)>,
    /// Requests of this kind are not answered.
    pub silent: Option<Kind>,
    /// On a request of this kind the port is closed.
    pub close: Option<Kind>,
    /// Before each answer come these bytes.
    pub garbage: Vec<u8>,
    /// An answer of another tag comes first.
    pub stale: bool,
    /// Answers come in pieces of so many bytes.
    pub piece: Option<usize>,
    /// So many requests are answered by `Busy`.
    pub busy: Arc<AtomicU32>,
    /// It speaks this version.
    pub version: Option<u8>,
    /// Answers to this kind have no body.
    pub empty: Option<Kind>,
    /// The length in headers is wrong by this.
    pub longer: u32,
    /// Each page of counters says that the first one is next.
    pub backwards: bool,
}

pub struct Fake {
    pub folder: PathBuf,
    pub state: Arc<Mutex<State>>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

pub fn folder() -> PathBuf {
    let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("dw-test-{}-{number}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

impl Fake {
    pub fn new() -> Fake {
        Fake::with(Manners::default())
    }

    pub fn with(manners: Manners) -> Fake {
        let folder = folder();
        let dom = |name: &str, state, memory: u64| Dom {
            name: name.into(),
            state,
            vcpus: 2,
            memory: memory << 20,
            cpu_time_ns: 61_900_000_000,
            exits: 1000,
        };
        let domains = [
            (0, dom("dom0", DomainState::Running, 1024)),
            (3, dom("web", DomainState::Blocked, 256)),
            (7, dom("db", DomainState::Paused, 64)),
        ];
        let state = State {
            domains: domains.into(),
            next_id: 8,
            log: b"first line\nsecond \x1b[2Jline\nthe rest".to_vec(),
            uptime_us: 5_000_000,
            ..State::default()
        };
        let state = Arc::new(Mutex::new(state));
        let listener = UnixListener::bind(folder.join(CONTROL_PORT)).unwrap();
        let served = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                served.lock().unwrap().connections += 1;
                serve(stream, &served, &manners);
                // The port is closed: what is not built is gone.
                served.lock().unwrap().domains.retain(|_, dom| dom.state != DomainState::Building);
            }
        });
        Fake { folder, state }
    }

    pub fn dw(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dw"));
        command.args(words).env("DW_PORTS", &self.folder).env("DW_SYSFS", self.folder.join("sys"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs `dw` and returns its exit code, output and errors.
    pub fn run(&self, words: &[&str]) -> (i32, String, String) {
        said(self.dw(words).output().unwrap())
    }

    /// Runs `dw`, which has to succeed, and returns its output.
    pub fn ok(&self, words: &[&str]) -> String {
        let (code, out, error) = self.run(words);
        assert_eq!(code, 0, "{words:?}: {out}{error}");
        out
    }

    pub fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap().asked.clone()
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.folder.join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A file with an arm64 Image of this length.
    pub fn kernel(&self, length: usize) -> String {
        self.write("Image", image(length))
    }

    /// Waits until something holds.
    pub fn until(&self, what: impl Fn(&State) -> bool) {
        for _ in 0..500 {
            if what(&self.state.lock().unwrap()) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("it did not come to hold in 5 s: {:?}", self.asked());
    }
}

pub fn image(length: usize) -> Vec<u8> {
    let mut image: Vec<u8> = (0..length).map(|at| (at * 7) as u8).collect();
    image[56..60].copy_from_slice(b"ARM\x64");
    image
}

pub fn said(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// A listener for a port, whose only connection is passed to `act`.
pub fn port(folder: &Path, name: &str, act: impl FnOnce(UnixStream) + Send + 'static) -> thread::JoinHandle<()> {
    let listener = UnixListener::bind(folder.join(name)).unwrap();
    thread::spawn(move || act(listener.accept().unwrap().0))
}

fn serve(mut stream: UnixStream, state: &Mutex<State>, manners: &Manners) {
    let mut parser = Parser::new(vec![0; FRAME_MAX]);
    loop {
        let Ok(count @ 1..) = stream.read(parser.space()) else { return };
        let Some(frame) = parser.advance(count) else { continue };
        let kind = Kind::from_number(frame.header.kind).expect("dw knows what it asks");
        let request = Request::decode(&frame).expect("dw asks properly");
        if !matches!(kind, Kind::ImageChunk | Kind::Version) {
            state.lock().unwrap().asked.push(described(&request));
        }
        if manners.close == Some(kind) {
            return;
        }
        if manners.silent == Some(kind) {
            continue;
        }
        let mut out = vec![0; FRAME_MAX];
        let busy = kind != Kind::Version
            && manners.busy.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        let length = if busy {
            frame.answer(Status::Busy, &Empty, &mut out)
        } else if let Some((_, status, text)) = manners.refuse.filter(|refuse| refuse.0 == kind) {
            frame.answer(status, &Detail { text }, &mut out)
        } else if manners.backwards && kind == Kind::Counters {
            frame.answer(Status::Ok, &CounterPage { next: 0, time_us: 0, counters: List::of(&[]) }, &mut out)
        } else if manners.empty == Some(kind) {
            frame.answer(Status::Ok, &Empty, &mut out)
        } else if let (Some(version), Request::Version(_)) = (manners.version, request) {
            let chosen = Chosen { min: version, max: version, version: 0, release: "9.0" };
            frame.answer(Status::UnsupportedVersion, &chosen, &mut out)
        } else {
            answer(&frame, &request, &mut state.lock().unwrap(), &mut out)
        };
        let mut answer = manners.garbage.clone();
        if manners.stale {
            let mut stale = out[..HEADER_LEN].to_vec();
            stale[8] = stale[8].wrapping_sub(1);
            stale[12..16].copy_from_slice(&[3, 0, 0, 0]);
            answer.extend([&stale[..], b"old"].concat());
        }
        let mut sent = out[..length.unwrap()].to_vec();
        let length = u32::from_le_bytes(sent[12..16].try_into().unwrap()) + manners.longer;
        sent[12..16].copy_from_slice(&length.to_le_bytes());
        answer.extend(sent);
        for piece in answer.chunks(manners.piece.unwrap_or(answer.len())) {
            if stream.write_all(piece).is_err() {
                return;
            }
        }
    }
}

/// The request in short.
fn described(request: &Request) -> String {
    match request {
        Request::Set(set) => match set.setting {
            Setting::Affinity(cpus) => format!("set {} {} cpus {cpus:?}", set.domain, set.vcpu as i32),
            setting => format!("set {} {} {setting:?}", set.domain, set.vcpu as i32),
        },
        other => format!("{other:?}"),
    }
}

fn domain<'a>(id: u32, dom: &'a Dom) -> Domain<'a> {
    Domain {
        id,
        state: dom.state,
        vcpus: dom.vcpus,
        vcpus_on: dom.vcpus,
        memory: dom.memory,
        memory_images: 0,
        cpu_time_ns: dom.cpu_time_ns,
        age_us: 1_000_000,
        exits: dom.exits,
        weight: 256,
        cap: 0,
        direct: id != 7,
        console: id != 7,
        on_crash: OnCrash::Destroy,
        watchdog_s: 0,
        restarts: 0,
        functions: u32::from(id == 3),
        name: Name::new(&dom.name).unwrap(),
    }
}

fn vcpu(vcpu: u32, dom: &Dom) -> Vcpu {
    let mut affinity = CpuSet::EMPTY;
    (0..4).for_each(|cpu| assert!(affinity.insert(cpu)));
    if vcpu == 1 {
        affinity = CpuSet::EMPTY;
        assert!(affinity.insert(2));
    }
    Vcpu {
        vcpu,
        state: if dom.state == DomainState::Running { VcpuState::Running } else { VcpuState::Blocked },
        cpu: if vcpu == 0 { 1 } else { ALL },
        cpu_time_ns: dom.cpu_time_ns / 2,
        exits: dom.exits / 2,
        moves: 0,
        weight: 256,
        cap: 0,
        direct: true,
        vwfi: Vwfi::Auto,
        affinity,
    }
}

fn answer(frame: &Frame, request: &Request, state: &mut State, out: &mut [u8]) -> Result<usize, NoRoom> {
    let refused = |status, out: &mut [u8]| frame.answer(status, &Detail { text: "" }, out);
    match *request {
        Request::Version(_) => frame.answer(Status::Ok, &Chosen { min: 1, max: 1, version: 1, release: "0.1.0" }, out),
        Request::Info => {
            // Each look is a second later, in which dom0 has used half a CPU.
            state.uptime_us += 1_000_000;
            if let Some(dom0) = state.domains.get_mut(&0) {
                dom0.cpu_time_ns += 500_000_000;
                dom0.exits += 2000;
            }
            let info = Info {
                uptime_us: state.uptime_us,
                cpus: 4,
                cpus_online: 3,
                timer_hz: 62_500_000,
                memory: 2 << 30,
                memory_free: 512 << 20,
                heap_free: 3 << 19,
                memory_quarantined: 0,
                domains: state.domains.len() as u32,
                domains_max: 256,
                vcpus: 6,
                vpes: 6,
                vpes_max: 512,
                gic: 41,
                itss: 1,
                direct: true,
                vwfi: Vwfi::Auto,
                smmus: 1,
                scheduler: "credit",
                machine: "linux,dummy-virt",
                cmdline: "sched=credit",
            };
            frame.answer(Status::Ok, &info, out)
        }
        Request::List(from) => match state.domains.range(from..).next() {
            Some((&id, dom)) => frame.answer(Status::Ok, &domain(id, dom), out),
            None => frame.answer(Status::End, &Empty, out),
        },
        Request::Lookup(name) => match state.domains.iter().find(|(_, dom)| dom.name == name.as_str()) {
            Some((&id, dom)) => frame.answer(Status::Ok, &domain(id, dom), out),
            None => refused(Status::NoSuchDomain, out),
        },
        // One vCPU a page.
        Request::Vcpus(VcpusFrom { domain, from }) => {
            let dom = &state.domains[&domain];
            let next = if from + 1 < dom.vcpus { from + 1 } else { ALL };
            frame.answer(Status::Ok, &VcpuPage { next, vcpus: List::of(&[vcpu(from, dom)]) }, out)
        }
        Request::Create(create) => {
            let id = state.next_id;
            state.next_id += 1;
            let dom = Dom {
                name: create.name.as_str().to_owned(),
                state: DomainState::Building,
                vcpus: create.vcpus,
                memory: create.memory,
                cpu_time_ns: 0,
                exits: 0,
            };
            state.domains.insert(id, dom);
            frame.answer(Status::Ok, &Created { domain: id }, out)
        }
        Request::Image(image) => {
            state.images.insert((image.domain, image.kind as u8), (image.size, Vec::new()));
            frame.answer(Status::Ok, &Empty, out)
        }
        Request::ImageChunk(chunk) => {
            let (size, bytes) = state.images.get_mut(&(chunk.domain, chunk.kind as u8)).expect("it is announced");
            assert_eq!(chunk.offset, bytes.len() as u64, "in order, without gaps");
            bytes.extend(chunk.bytes);
            assert!(bytes.len() as u64 <= *size);
            frame.answer(Status::Ok, &Empty, out)
        }
        Request::Build(id) => {
            let kernel = &state.images[&(id, 0)];
            assert_eq!(kernel.0, kernel.1.len() as u64);
            state.domains.get_mut(&id).unwrap().state = DomainState::Built;
            frame.answer(Status::Ok, &Built { time_us: 4321, longest_step_us: 180, steps: 40 }, out)
        }
        Request::Abort(id) | Request::Destroy(id) => {
            assert!(state.domains.remove(&id).is_some());
            frame.answer(Status::Ok, &Empty, out)
        }
        Request::Start(start) => {
            state.domains.get_mut(&start.domain).unwrap().state =
                if start.paused { DomainState::Paused } else { DomainState::Running };
            frame.answer(Status::Ok, &Empty, out)
        }
        Request::Shutdown(3) => {
            state.domains.remove(&3);
            frame.answer(Status::Ok, &Empty, out)
        }
        Request::Shutdown(_) => frame.answer(Status::NotSupported, &Detail { text: "it has no power button" }, out),
        Request::PciList(from) => {
            let functions = [
                PciFunction {
                    sbdf: Sbdf(8),
                    domain: 0,
                    vendor: 0x1af4,
                    device: 0x1041,
                    class: 0x02_00_00,
                    assignable: false,
                    why: "no SMMU limits its DMA",
                },
                PciFunction {
                    sbdf: Sbdf(0x18),
                    domain: 3,
                    vendor: 0x1b36,
                    device: 0x10,
                    class: 0x01_08_02,
                    assignable: true,
                    why: "",
                },
            ];
            let at = from as usize;
            let page = PciPage { next: if at == 0 { 1 } else { ALL }, functions: List::of(&functions[at..=at]) };
            frame.answer(Status::Ok, &page, out)
        }
        Request::Cpus(_) => {
            let cpu = |cpu, state, domain, vcpu| Cpu { cpu, state, mpidr: cpu.into(), domain, vcpu };
            let cpus = [
                cpu(0, CpuState::Online, 3, 1),
                cpu(1, CpuState::Online, ALL, ALL),
                cpu(2, CpuState::Offline, ALL, ALL),
            ];
            frame.answer(Status::Ok, &CpuPage { next: ALL, cpus: List::of(&cpus) }, out)
        }
        Request::Log(from) => {
            // At most ten bytes at a time.
            let first = from.max(state.log_first);
            let end = state.log_first + state.log.len() as u64;
            let next = (first + 10).min(end);
            let bytes = &state.log[(first - state.log_first) as usize..(next - state.log_first) as usize];
            frame.answer(Status::Ok, &LogChunk { first, next, bytes }, out)
        }
        Request::Counters(counters) => {
            let exits = state.domains[&0].exits;
            let all = [("exit irq", exits), ("exit smc", 0), ("doorbell", 12)];
            let at = counters.from as usize;
            let entry = [Counter { value: all[at].1, name: all[at].0 }];
            let next = if at < 2 { counters.from + 1 } else { ALL };
            let page = CounterPage { next, time_us: state.uptime_us, counters: List::of(&entry) };
            frame.answer(Status::Ok, &page, out)
        }
        Request::Pause(_)
        | Request::Unpause(_)
        | Request::Reset(_)
        | Request::Set(_)
        | Request::Watchdog(_)
        | Request::PciAssign(_)
        | Request::PciRelease(_)
        | Request::CpuOffline(_)
        | Request::CpuOnline(_) => frame.answer(Status::Ok, &Empty, out),
    }
}
