//! The server against a client that sends what it likes, with acts that are counted.

use super::fake::Pipe;
use super::*;
use crate::host::events::Events;
use crate::ids::{DomId, DomainName};
use doorward_api::{Created, Event, EventKind, Kind};
use std::vec::Vec;

impl Pipe {
    fn open() -> Pipe {
        let pipe = Pipe::default();
        pipe.session.set(1);
        pipe.room.set(usize::MAX);
        pipe
    }

    fn ask(&self, request: &Request<'_>, tag: u32) {
        let mut bytes = [0; FRAME_MAX];
        let length = request.encode(tag, &mut bytes).unwrap();
        self.to_server.borrow_mut().extend(&bytes[..length]);
    }

    /// The frames that have come: kind, status, tag and body.
    fn answers(&self) -> Vec<(u16, u16, u32, Vec<u8>)> {
        let all = core::iter::from_fn(|| self.frame());
        let all = all.map(|(header, body)| (header.kind, header.status, header.tag, body)).collect();
        assert!(self.to_client.borrow().is_empty(), "the server sends whole frames");
        all
    }
}

/// Acts that take steps: `create` takes three, `destroy` waits until it is told to go on, all else is done at once.
#[derive(Default)]
pub struct Counted {
    pub begun: Vec<Kind>,
    left: u32,
    waits: bool,
    /// What hanging up still has to undo.
    pub to_undo: u32,
    pub events: Option<Events>,
}

impl Acts for Counted {
    type With = ();

    fn begin(&mut self, _: &(), request: &Request<'_>, reply: Reply<'_>) -> Outcome {
        assert!(self.left == 0 && !self.waits, "one request at a time");
        assert_eq!(self.to_undo, 0, "what an earlier client has begun is undone before");
        self.begun.push(request.kind());
        match request {
            Request::Create(_) => {
                self.left = 3;
                self.to_undo = 2;
                Outcome::Working
            }
            Request::Destroy(_) => {
                self.waits = true;
                Outcome::Waiting
            }
            Request::Log(_) => reply.done(&&[0u8; 60_000][..]),
            Request::Pause(_) => reply.refused(Status::NoSuchDomain, &"\u{e4}".repeat(150)),
            _ => reply.done(&Empty),
        }
    }

    fn proceed(&mut self, _: &(), reply: Reply<'_>) -> Outcome {
        if self.waits {
            return Outcome::Waiting;
        }
        self.left = self.left.saturating_sub(1);
        if self.left > 0 {
            return Outcome::Working;
        }
        self.to_undo = 0;
        reply.done(&Created { domain: 7 })
    }

    fn hang_up(&mut self, _: &()) -> Progress {
        (self.left, self.waits) = (0, false);
        self.to_undo = self.to_undo.saturating_sub(1);
        if self.to_undo == 0 { Progress::Done } else { Progress::More }
    }

    fn next_event(&self, after: u64) -> Option<Recorded> {
        self.events.as_ref()?.next(after)
    }

    fn last_event(&self) -> u64 {
        self.events.as_ref().map_or(0, Events::last)
    }
}

/// Performs steps until there is nothing to do. Returns their number.
pub fn serve(server: &mut Server<Counted>, control: &Pipe) -> usize {
    let most = 10_000;
    (0..most).find(|_| server.step(&(), control) == Did::Nothing).expect("it ends")
}

pub fn create() -> Request<'static> {
    Request::Create(doorward_api::Create {
        vcpus: 1,
        memory: 32 << 20,
        weight: 0,
        cap: 0,
        on_crash: doorward_api::OnCrash::Destroy,
        watchdog_s: 0,
        console: true,
        direct: true,
        allow_no_reset: false,
        name: doorward_api::Name::new("web").unwrap(),
        cmdline: "",
        functions: doorward_api::List::of(&[]),
    })
}

#[test]
fn requests_are_answered_one_by_one_in_order() {
    let control = Pipe::open();
    let mut server = Server::new(Counted::default());
    control.ask(&Request::Version(Versions { min: 0, max: 9 }), 1);
    control.ask(&create(), 2);
    control.ask(&Request::Info, 3);
    serve(&mut server, &control);
    let answers = control.answers();
    assert_eq!(
        answers.iter().map(|&(kind, status, tag, _)| (kind, status, tag)).collect::<Vec<_>>(),
        [(Kind::Version as u16, 0, 1), (Kind::Create as u16, 0, 2), (Kind::Info as u16, 0, 3)]
    );
    assert_eq!(Chosen::read(&answers[0].3).unwrap().version, VERSION);
    assert_eq!(Created::read(&answers[1].3).unwrap().domain, 7);
    assert_eq!(server.acts_mut().begun, [Kind::Create, Kind::Info]);
}

#[test]
fn what_is_not_understood_is_answered_and_nothing_is_begun() {
    let control = Pipe::open();
    let mut server = Server::new(Counted::default());
    let send = |version: u8, kind: u16, body: &[u8]| {
        let header = Header { version, kind, status: 0, tag: 9, length: body.len() as u32 };
        control.to_server.borrow_mut().extend(header.bytes().iter().chain(body));
    };
    send(VERSION, 999, &[]);
    send(VERSION, Kind::Pause as u16, &[1, 2]);
    send(VERSION, Kind::Info as u16, &[0]);
    send(VERSION + 1, Kind::Info as u16, &[]);
    control.to_server.borrow_mut().extend(b"no frame at all");
    control.ask(&Request::Version(Versions { min: VERSION + 1, max: 9 }), 10);
    serve(&mut server, &control);
    let answers = control.answers();
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.1).collect();
    let expected =
        [Status::UnknownRequest, Status::Malformed, Status::Malformed, Status::UnsupportedVersion, Status::Ok];
    assert_eq!(statuses, expected.map(|status| status as u16));
    assert_eq!(Chosen::read(&answers[3].3).unwrap().max, VERSION);
    assert_eq!(Chosen::read(&answers[4].3).unwrap().version, 0, "no version in common");
    assert!(server.acts_mut().begun.is_empty());
}

#[test]
fn a_client_that_does_not_read_is_not_waited_for_and_loses_nothing() {
    let control = Pipe::open();
    let mut server = Server::new(Counted::default());
    control.room.set(5);
    control.ask(&Request::Info, 1);
    control.ask(&Request::Info, 2);
    serve(&mut server, &control);
    assert_eq!(server.acts_mut().begun.len(), 1, "the next request waits until the answer is sent");
    control.room.set(usize::MAX);
    serve(&mut server, &control);
    assert_eq!(control.answers().len(), 2);
}

#[test]
fn a_client_that_goes_is_undone_step_by_step_before_the_next_one_is_served() {
    let control = Pipe::open();
    for steps in 0..5 {
        let mut server = Server::new(Counted::default());
        control.session.set(1);
        control.ask(&create(), 1);
        for _ in 0..steps {
            let _ = server.step(&(), &control);
        }
        // A part of a frame is left of it, too.
        control.to_server.borrow_mut().clear();
        control.to_server.borrow_mut().extend(&doorward_api::MAGIC);
        let _ = server.step(&(), &control);
        control.to_server.borrow_mut().clear();
        control.session.set(3);
        control.answers();
        control.ask(&Request::Info, 2);
        serve(&mut server, &control);
        let tags: Vec<u32> = control.answers().iter().map(|answer| answer.2).collect();
        assert_eq!(tags, [2], "after {steps} steps: nothing of the first client is answered");
        assert_eq!(server.acts_mut().begun.last(), Some(&Kind::Info));
    }
}

#[test]
fn a_request_that_waits_is_answered_by_whoever_looks() {
    let (control, events) = (Pipe::open(), Pipe::default());
    let mut server = Server::new(Counted::default());
    control.ask(&Request::Destroy(3), 1);
    assert!(serve(&mut server, &control) < 10, "the vCPU that has asked goes on");
    assert_eq!(server.look(&(), &control, &events), Did::Nothing);
    assert!(control.answers().is_empty());
    server.acts_mut().waits = false;
    assert_eq!(server.look(&(), &control, &events), Did::Something);
    assert_eq!(control.answers().len(), 1);
    // Work that somebody does at the expense of dom0 is not done by others.
    control.ask(&create(), 2);
    let _ = server.step(&(), &control);
    let _ = server.step(&(), &control);
    assert_eq!(server.look(&(), &control, &events), Did::Nothing);
    assert!(control.answers().is_empty());
}

#[test]
fn events_come_since_the_stream_was_opened_and_stay_while_there_is_no_room() {
    let (control, events) = (Pipe::default(), Pipe::default());
    let mut server = Server::new(Counted { events: Some(Events::new()), ..Counted::default() });
    let name = DomainName::from("web").unwrap();
    let record = |server: &mut Server<Counted>, id: u16| {
        server.acts_mut().events.as_ref().unwrap().record(EventKind::Created, DomId(id), &name, "why");
    };
    record(&mut server, 1);
    assert_eq!(server.look(&(), &control, &events), Did::Nothing, "nobody listens");
    events.session.set(1);
    events.room.set(usize::MAX);
    assert_eq!(server.look(&(), &control, &events), Did::Nothing, "that was before");
    record(&mut server, 2);
    record(&mut server, 3);
    events.room.set(10);
    assert_eq!(server.look(&(), &control, &events), Did::Nothing);
    events.room.set(usize::MAX);
    while server.look(&(), &control, &events) == Did::Something {}
    let came: Vec<(u64, u32)> = events
        .answers()
        .iter()
        .map(|(.., body)| Event::read(body).unwrap())
        .map(|event| (event.sequence, event.domain))
        .collect();
    assert_eq!(came, [(2, 2), (3, 3)]);
}

#[test]
fn an_answer_that_is_too_long_is_an_error_and_a_long_text_is_cut() {
    let control = Pipe::open();
    let mut server = Server::new(Counted::default());
    control.ask(&Request::Log(0), 1);
    control.ask(&Request::Pause(5), 2);
    serve(&mut server, &control);
    let answers = control.answers();
    assert_eq!(answers[0].1, Status::Internal as u16);
    assert_eq!(Detail::read(&answers[1].3).unwrap().text.len(), 200);
}
