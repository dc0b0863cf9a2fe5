//! Requests and answers over the control port.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use doorward_api::{
    Body, CONTROL_PORT, Chosen, Create, Created, Detail, Domain, FRAME_MAX, Kind, Name, Parser, Request, Status,
    VERSION, Versions,
};

use crate::fail::{Class, Failure, Outcome};
use crate::port::{Came, Port, Ports};
use crate::text::shown;

/// How long to wait before a request that was answered by `Busy` is repeated.
const AGAIN: Duration = Duration::from_millis(10);

/// How much longer than other answers those may take that have to wait for memory to be cleared or a guest to end.
const LONG: u32 = 12;

/// The control port, open.
pub struct Client {
    port: Port,
    parser: Parser<Vec<u8>>,
    tag: u32,
    /// How long an answer may take.
    patience: Duration,
    frame: Vec<u8>,
}

/// What the hypervisor said instead of doing what it was asked.
#[derive(Debug)]
pub struct Refusal {
    pub status: Status,
    pub detail: String,
}

/// An answer: its body, or a refusal.
pub type Answer = Result<Vec<u8>, Refusal>;

impl Client {
    /// Opens the port, waiting while another program has it, and settles the version.
    pub fn connect(ports: &Ports, patience: Duration) -> Outcome<Client> {
        let port = ports.open(CONTROL_PORT, Instant::now() + patience, false)?;
        // Not the tags of a client before this one, whose answers may still be on their way.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let tag = (now.as_micros() as u32) ^ std::process::id().rotate_left(16);
        let (parser, frame) = (Parser::new(vec![0; FRAME_MAX]), vec![0; FRAME_MAX]);
        let mut client = Client { port, parser, tag, patience, frame };
        let versions = client.ask(&Request::Version(Versions { min: VERSION, max: VERSION }))?;
        let body = match &versions {
            Ok(body) => body,
            Err(refusal) => return Err(refusal.failure(Kind::Version)),
        };
        let chosen = read::<Chosen>(body, Kind::Version)?;
        if chosen.version == VERSION {
            return Ok(client);
        }
        let refusal = Refusal { status: Status::UnsupportedVersion, detail: other_version(&chosen) };
        Err(refusal.failure(Kind::Version))
    }

    /// Sends a request and returns its answer. Repeats it while the hypervisor is busy.
    pub fn ask(&mut self, request: &Request<'_>) -> Outcome<Answer> {
        let long =
            matches!(request.kind(), Kind::Build | Kind::Destroy | Kind::Reset | Kind::PciAssign | Kind::PciRelease);
        let patience = if long { self.patience * LONG } else { self.patience };
        let deadline = Instant::now() + patience;
        loop {
            self.tag = self.tag.wrapping_add(1);
            let length = request
                .encode(self.tag, &mut self.frame)
                .map_err(|_| Failure::usage(format_args!("{}: the request is too long", request.kind().label())))?;
            self.port.write(self.frame.get(..length).unwrap_or_default(), patience)?;
            let answer = self.answer(request.kind(), deadline, patience)?;
            match &answer {
                Err(refusal) if refusal.status == Status::Busy && Instant::now() + AGAIN < deadline => {
                    std::thread::sleep(AGAIN);
                }
                _ => return Ok(answer),
            }
        }
    }

    /// Waits for the answer with the present tag.
    fn answer(&mut self, kind: Kind, deadline: Instant, patience: Duration) -> Outcome<Answer> {
        loop {
            let late = || {
                let text = format!("the hypervisor did not answer `{}` in {} s", kind.label(), patience.as_secs_f64());
                Failure::new(Class::NoAnswer, text).hint("--timeout SECONDS waits longer")
            };
            // Also if there is always something to read.
            if Instant::now() >= deadline {
                return Err(late());
            }
            let count = match self.port.read(self.parser.space(), deadline)? {
                Came::Bytes(count) => count,
                Came::Closed => {
                    let text = format!("the hypervisor closed the port instead of answering `{}`", kind.label());
                    return Err(Failure::new(Class::NoAnswer, text).hint("`dw log` may say why"));
                }
                Came::Nothing => return Err(late()),
            };
            let Some(frame) = self.parser.advance(count) else { continue };
            if frame.header.tag != self.tag || frame.header.kind != kind as u16 {
                continue;
            }
            let status = frame.header.status;
            return Ok(match Status::from_number(status) {
                Some(Status::Ok) => Ok(frame.body.to_vec()),
                Some(status) => Err(Refusal { status, detail: detail(status, frame.body) }),
                None => Err(Refusal {
                    status: Status::Internal,
                    detail: format!("status {status}, which this dw does not know"),
                }),
            });
        }
    }

    /// Sends a request that has to succeed, and returns the answer's body.
    pub fn get(&mut self, request: &Request<'_>) -> Outcome<Vec<u8>> {
        self.ask(request)?.map_err(|refusal| refusal.failure(request.kind()))
    }

    /// Sends a request that has to succeed, and whose answer has no body.
    pub fn run(&mut self, request: &Request<'_>) -> Outcome {
        self.get(request).map(drop)
    }

    /// Announces a domain and returns its id.
    pub fn create(&mut self, create: Create<'_>) -> Outcome<u32> {
        let body = self.get(&Request::Create(create))?;
        Ok(read::<Created>(&body, Kind::Create)?.domain)
    }

    /// All domains, in the order of their ids.
    pub fn domains(&mut self) -> Outcome<Vec<DomainInfo>> {
        let (mut all, mut from) = (Vec::new(), 0);
        loop {
            match self.ask(&Request::List(from))? {
                Ok(body) => {
                    let domain = read::<Domain>(&body, Kind::List)?;
                    if domain.id < from {
                        return Err(senseless(Kind::List));
                    }
                    let next = domain.id.checked_add(1);
                    all.push(domain.into());
                    match next {
                        Some(next) => from = next,
                        None => return Ok(all),
                    }
                }
                Err(refusal) if refusal.status == Status::End => return Ok(all),
                Err(refusal) => return Err(refusal.failure(Kind::List)),
            }
        }
    }

    /// The domain with this name or id.
    pub fn domain(&mut self, text: &str) -> Outcome<DomainInfo> {
        let missing =
            || Failure::new(Class::Refused, format_args!("there is no domain {text}")).hint("`dw list` lists them");
        if let Ok(id) = text.parse::<u32>() {
            return match self.ask(&Request::List(id))? {
                Ok(body) => {
                    Some(read::<Domain>(&body, Kind::List)?).filter(|domain| domain.id == id).map(DomainInfo::from)
                }
                Err(refusal) if refusal.status == Status::End => None,
                Err(refusal) => return Err(refusal.failure(Kind::List)),
            }
            .ok_or_else(missing);
        }
        let name = Name::new(text).map_err(|why| Failure::usage(format_args!("`{text}` names no domain: {why}")))?;
        match self.ask(&Request::Lookup(name))? {
            Ok(body) => Ok(read::<Domain>(&body, Kind::Lookup)?.into()),
            Err(refusal) if refusal.status == Status::NoSuchDomain => Err(missing()),
            Err(refusal) => Err(refusal.failure(Kind::Lookup)),
        }
    }

    /// Asks for pages until there is no more. `page` takes a page's body and returns what to ask for next.
    pub fn pages(
        &mut self,
        request: impl Fn(u32) -> Request<'static>,
        page: &mut dyn FnMut(&[u8]) -> Outcome<u32>,
    ) -> Outcome {
        let mut from = 0;
        loop {
            let request = request(from);
            match self.ask(&request)? {
                Ok(body) => {
                    let next = page(&body)?;
                    if next == doorward_api::ALL {
                        return Ok(());
                    }
                    // A server that goes backwards would keep this going for ever.
                    if next <= from {
                        return Err(senseless(request.kind()));
                    }
                    from = next;
                }
                Err(refusal) if refusal.status == Status::End => return Ok(()),
                Err(refusal) => return Err(refusal.failure(request.kind())),
            }
        }
    }
}

/// What an answer that is a refusal says beside its status.
fn detail(status: Status, body: &[u8]) -> String {
    match status {
        Status::End => String::new(),
        Status::UnsupportedVersion => Chosen::read(body).map(|chosen| other_version(&chosen)).unwrap_or_default(),
        _ => Detail::read(body).map(|detail| shown(detail.text)).unwrap_or_default(),
    }
}

fn other_version(chosen: &Chosen<'_>) -> String {
    let Chosen { min, max, release, .. } = chosen;
    format!("release {} speaks {min} to {max}, and this dw speaks {VERSION}", shown(release))
}

/// Reads the body of an answer.
pub fn read<'a, T: Body<'a>>(body: &'a [u8], kind: Kind) -> Outcome<T> {
    T::read(body).map_err(|_| senseless(kind))
}

fn senseless(kind: Kind) -> Failure {
    Failure::new(Class::NoAnswer, format_args!("the answer to `{}` makes no sense", kind.label()))
        .hint("use the dw that was built with this hypervisor")
}

/// A domain, with a name of its own.
#[derive(Clone, Debug)]
pub struct DomainInfo {
    pub name: String,
    /// Its name is empty.
    pub facts: Domain<'static>,
}

impl From<Domain<'_>> for DomainInfo {
    fn from(domain: Domain<'_>) -> DomainInfo {
        let nameless = Name::new("x").unwrap_or_else(|_| unreachable!("it is a letter"));
        DomainInfo { name: domain.name.as_str().to_owned(), facts: Domain { name: nameless, ..domain } }
    }
}

impl Refusal {
    /// The sentence for the user, and what to do.
    pub fn failure(&self, kind: Kind) -> Failure {
        let detail = if self.detail.is_empty() { String::new() } else { format!(": {}", self.detail) };
        let failure = Failure::new(Class::Refused, format_args!("{}: {}{detail}", kind.label(), self.status));
        match self.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }

    fn hint(&self) -> Option<&'static str> {
        Some(match self.status {
            Status::UnknownRequest | Status::Malformed | Status::UnsupportedVersion => {
                "use the dw that was built with this hypervisor"
            }
            Status::NoSuchDomain => "`dw list` lists the domains",
            Status::NameTaken => "`dw list` lists the domains; choose another name, or end that one",
            Status::WrongState => "`dw list` shows its state",
            Status::NoMemory => "`dw info` shows what is free; give the domain less, or end another one",
            Status::NoHeap | Status::TooManyDomains | Status::NoVpe => "end another domain",
            Status::NoCpu => "with sched=null each vCPU needs a CPU of its own; sched=credit shares them",
            Status::BadKernel => "the kernel has to be an uncompressed arm64 Image (arch/arm64/boot/Image)",
            Status::DoesNotFit | Status::TooLarge => "give the domain more memory, or a smaller image",
            Status::NoSuchFunction | Status::FunctionInUse | Status::NotAssignable => {
                "`dw pci list` shows which functions can be given to domains, and why others cannot"
            }
            Status::NoSmmu => "without an SMMU in front of it the function could write into any domain's memory",
            Status::NoSuchCpu | Status::LastCpu => "`dw cpu list` lists the CPUs",
            Status::NoSuchVcpu => "`dw vcpu-list` lists the vCPUs",
            Status::NoReaction => "`dw destroy` ends it without asking it",
            Status::Internal | Status::HardwareFailed | Status::ResetFailed => "`dw log` says more",
            _ => return None,
        })
    }
}
