//! The server of dom0's requests: whatever a client sends, opens, closes or does not read, one request is under way at a
//! time, each answer is a whole frame that answers a frame of the same session, in their order, and what a client that is
//! gone has begun is undone before the next one is served.
//!
//! `cargo +nightly fuzz run management -- -max_total_time=60`
#![cfg_attr(fuzzing, no_main)]

use doorward::control::manage::server::fake::Pipe;
use doorward::control::manage::server::{Acts, Did, Outcome, Reply, Server};
use doorward::host::events::{Events, Recorded};
use doorward::ids::{DomId, DomainName};
use doorward::util::progress::Progress;
use doorward_api::{Empty, EventKind, FRAME_MAX, Header, Kind, MAGIC, Request, Status, VERSION};
use std::cell::Cell;
use std::collections::VecDeque;

#[path = "../input.rs"]
mod input;
use input::Input;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run(bytes));

/// Acts that take steps or wait, and leave something to undo.
struct World {
    under_way: Option<Kind>,
    left: u8,
    to_undo: u8,
    may_go_on: Cell<bool>,
    events: Events,
    begun: usize,
}

impl Acts for World {
    type With = ();

    fn begin(&mut self, _: &(), request: &Request<'_>, reply: Reply<'_>) -> Outcome {
        assert!(self.under_way.is_none(), "one request at a time");
        assert_eq!(self.to_undo, 0, "what an earlier client has left is undone");
        self.begun += 1;
        match request {
            Request::Create(_) | Request::Build(_) | Request::Pause(_) => {
                (self.under_way, self.left, self.to_undo) = (Some(request.kind()), 3, 2);
                Outcome::Working
            }
            Request::Destroy(_) => {
                self.under_way = Some(Kind::Destroy);
                Outcome::Waiting
            }
            Request::Log(_) => reply.done(&&[7u8; 20_000][..]),
            Request::Lookup(name) => reply.refused(Status::NoSuchDomain, &name.as_str().repeat(9)),
            _ => reply.done(&Empty),
        }
    }

    fn proceed(&mut self, _: &(), reply: Reply<'_>) -> Outcome {
        if self.under_way == Some(Kind::Destroy) && !self.may_go_on.get() {
            return Outcome::Waiting;
        }
        self.left = self.left.saturating_sub(1);
        if self.left > 0 {
            return Outcome::Working;
        }
        assert!(self.under_way.take().is_some());
        self.to_undo = 0;
        reply.done(&Empty)
    }

    fn hang_up(&mut self, _: &()) -> Progress {
        self.under_way = None;
        self.to_undo = self.to_undo.saturating_sub(1);
        if self.to_undo == 0 { Progress::Done } else { Progress::More }
    }

    fn next_event(&self, after: u64) -> Option<Recorded> {
        self.events.next(after)
    }

    fn last_event(&self) -> u64 {
        self.events.last()
    }
}

/// Performs a sequence of acts of a client.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let (control, events) = (Pipe::default(), Pipe::default());
    let events_log = Events::new();
    let name = DomainName::from("web").unwrap();
    let world =
        World { under_way: None, left: 0, to_undo: 0, may_go_on: Cell::new(false), events: events_log, begun: 0 };
    let mut server = Server::new(world);
    // The tags of frames that were sent whole in this session and in step, as long as that is known.
    let mut asked: Option<VecDeque<u32>> = Some(VecDeque::new());
    let mut tag = 0u32;
    while !input.0.is_empty() {
        match input.byte() % 12 {
            0..=4 => {
                // A frame; most kinds are known.
                let kinds = Kind::EVERY;
                let byte = usize::from(input.byte());
                let kind = kinds.get(byte % (kinds.len() + 1)).map_or(999, |kind| *kind as u16);
                let length = usize::from(input.byte());
                let body: Vec<u8> = (0..length).map(|_| input.byte()).collect();
                tag += 1;
                let header = Header { version: VERSION, kind, status: 0, tag, length: length as u32 };
                control.to_server.borrow_mut().extend(header.bytes().iter().chain(&body));
                if let Some(asked) = &mut asked {
                    asked.push_back(tag);
                }
            }
            5 => {
                // Garbage: what follows may be taken for a part of a frame.
                let count = input.byte() % 40;
                let garbage: Vec<u8> = (0..count).map(|_| input.byte()).collect();
                control.to_server.borrow_mut().extend(&garbage);
                asked = asked.filter(|_| garbage.is_empty());
            }
            6 => {
                control.to_server.borrow_mut().extend(MAGIC);
                asked = None;
            }
            7 => {
                // It closes, or opens anew; what it has not read is gone.
                control.session.set(control.session.get() + 1 + u32::from(input.byte() & 1));
                control.to_server.borrow_mut().clear();
                control.to_client.borrow_mut().clear();
                asked = Some(VecDeque::new());
            }
            8 => control.room.set(usize::from(input.byte()) * 100),
            9 => {
                events.session.set(events.session.get() + 1);
                events.to_client.borrow_mut().clear();
                events.room.set(usize::from(input.byte()) * 10);
            }
            10 => server.acts_mut().may_go_on.set(input.byte() & 1 != 0),
            _ => server.acts_mut().events.record(EventKind::Paused, DomId(1), &name, "text"),
        }
        // A step takes bytes, or one of the steps of a request, or sends something.
        let bytes = control.to_server.borrow().len() + control.room.get() + events.room.get();
        let most = 20 + bytes;
        let steps = (0..most).find(|_| server.step(&(), &control) == Did::Nothing);
        assert!(steps.is_some(), "it never ends");
        let _ = server.look(&(), &control, &events);
        assert!(control.to_client.borrow().len() <= control.room.get().max(FRAME_MAX));
        while let Some((header, _)) = control.frame() {
            if let Some(asked) = &mut asked {
                assert_eq!(asked.pop_front(), Some(header.tag), "answers come in the order of the requests");
            }
        }
        while let Some((header, _)) = events.frame() {
            assert_eq!(header.kind, doorward_api::EVENT);
        }
    }
}
