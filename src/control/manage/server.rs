//! The protocol of the control channel on EL2's side: frames of [`doorward_api`] from a stream of bytes, one request at a
//! time, and its answer.
//!
//! Each call does a bounded piece: takes some bytes, performs a step of the request that is under way, or sends what there is
//! room for. Nothing waits for the client: an answer that is not read stays here, and no other request is read meanwhile;
//! events that are not read are overwritten where they are kept. When the client closes the stream, what it has begun is
//! given up, in steps as well.
//!
//! What is asked for is done by [`Acts`], so that all of this runs on the host against any act.
#![deny(
    clippy::panic,
    clippy::todo,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(
    any(test, fuzzing),
    allow(
        clippy::panic,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

use crate::domain::streams;
use crate::host::events::Recorded;
use crate::util::progress::Progress;
use alloc::boxed::Box;
use alloc::vec;
use doorward_api::{Body, Chosen, Detail, Empty, FRAME_MAX, Frame, Header, Parser, Request, Status, VERSION, Versions};

/// The number of bytes that one step takes from the stream.
const TAKE: usize = 4 << 10;

/// A stream of bytes to and from a client.
pub trait Stream {
    /// A number that changes whenever the client opens or closes the stream; odd while it is open.
    fn session(&self) -> u32;
    /// Takes bytes that the client has sent, at most as many as fit, and returns their number.
    fn receive(&self, into: &mut [u8]) -> usize;
    /// Sends as many bytes as there is room for, and returns their number.
    fn send(&self, from: &[u8]) -> usize;
    /// Sends all bytes, or none if there is no room for all.
    fn send_whole(&self, from: &[u8]) -> bool;
}

impl Stream for streams::Stream<'_> {
    fn session(&self) -> u32 {
        self.session()
    }

    fn receive(&self, into: &mut [u8]) -> usize {
        self.receive(into)
    }

    fn send(&self, from: &[u8]) -> usize {
        self.send(from)
    }

    fn send_whole(&self, from: &[u8]) -> bool {
        self.send_whole(from)
    }
}

/// What a step of a request has led to.
#[must_use]
pub enum Outcome {
    /// The answer has this length.
    Answered(usize),
    /// There is more to do.
    Working,
    /// It cannot go on before something else has happened.
    Waiting,
}

/// The place for the answer to a request.
pub struct Reply<'b> {
    header: Header,
    out: &'b mut [u8],
}

impl Reply<'_> {
    fn write<'v>(self, status: Status, body: &impl Body<'v>) -> Outcome {
        let frame = Frame { header: self.header, body: &[] };
        let whole = frame.answer(status, body, self.out);
        // An answer that is too long for a frame is a fault of ours.
        let length = whole.or_else(|_| frame.answer(Status::Internal, &Empty, self.out));
        Outcome::Answered(length.unwrap_or(0))
    }

    /// It is done.
    pub fn done<'v>(self, body: &impl Body<'v>) -> Outcome {
        self.write(Status::Ok, body)
    }

    /// It is not done; `text` says more than the status.
    pub fn refused(self, status: Status, text: &str) -> Outcome {
        let text = text.get(..text.floor_char_boundary(200)).unwrap_or_default();
        self.write(status, &Detail { text })
    }
}

/// What requests ask for.
pub trait Acts {
    /// What the acts need in addition at each step.
    type With: ?Sized;

    /// Begins a request. Its body is gone afterwards.
    fn begin(&mut self, with: &Self::With, request: &Request<'_>, reply: Reply<'_>) -> Outcome;

    /// Goes on with the request that was begun last and is not answered.
    fn proceed(&mut self, with: &Self::With, reply: Reply<'_>) -> Outcome;

    /// The client is gone: undoes a part of what it has begun and not finished.
    fn hang_up(&mut self, with: &Self::With) -> Progress;

    /// The first event that is kept with a sequence number above `after`.
    fn next_event(&self, after: u64) -> Option<Recorded>;

    /// The sequence number of the last event.
    fn last_event(&self) -> u64;
}

/// Whether a step has done anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Did {
    /// There may be more to do.
    Something,
    /// There is nothing to do before something else happens.
    Nothing,
}

/// The server of one client at a time.
pub struct Server<A> {
    acts: A,
    parser: Parser<Box<[u8]>>,
    /// The answer, and the part of it that has not been sent.
    out: Box<[u8]>,
    unsent: core::ops::Range<usize>,
    /// The session to which all of this belongs.
    session: u32,
    /// The request that is under way, and whether it waits.
    busy: Option<(Header, bool)>,
    /// The session of the stream of events, and the last event that was sent there.
    events_session: u32,
    sent_event: u64,
}

impl<A: Acts> Server<A> {
    /// A server without a client.
    #[must_use]
    pub fn new(acts: A) -> Server<A> {
        Server {
            acts,
            parser: Parser::new(vec![0; FRAME_MAX].into_boxed_slice()),
            out: vec![0; FRAME_MAX].into_boxed_slice(),
            unsent: 0..0,
            session: 0,
            busy: None,
            events_session: 0,
            sent_event: 0,
        }
    }

    /// Performs one step.
    pub fn step(&mut self, with: &A::With, control: &dyn Stream) -> Did {
        if self.session != control.session() {
            return self.change_session(with, control.session());
        }
        if self.session & 1 == 0 {
            return Did::Nothing;
        }
        if !self.unsent.is_empty() {
            return self.send(control);
        }
        if let Some((header, _)) = self.busy {
            let outcome = self.acts.proceed(with, Reply { header, out: &mut self.out });
            return self.take(header, outcome);
        }
        self.receive(with, control)
    }

    /// Performs a step that is not at the expense of dom0: sends an event, or the answer to a request that has waited.
    pub fn look(&mut self, with: &A::With, control: &dyn Stream, events: &dyn Stream) -> Did {
        if self.session == control.session()
            && let Some((header, true)) = self.busy
        {
            let outcome = self.acts.proceed(with, Reply { header, out: &mut self.out });
            if self.take(header, outcome) == Did::Something {
                return self.send(control);
            }
        }
        self.pass_event(events)
    }

    /// Ends a session, step by step, and begins the next one.
    fn change_session(&mut self, with: &A::With, session: u32) -> Did {
        self.parser.reset();
        (self.unsent, self.busy) = (0..0, None);
        if self.acts.hang_up(with) == Progress::Done {
            self.session = session;
        }
        Did::Something
    }

    fn send(&mut self, control: &dyn Stream) -> Did {
        let sent = control.send(self.out.get(self.unsent.clone()).unwrap_or_default());
        self.unsent.start = self.unsent.start.saturating_add(sent);
        if self.unsent.is_empty() {
            self.unsent = 0..0;
        }
        if sent > 0 { Did::Something } else { Did::Nothing }
    }

    fn take(&mut self, header: Header, outcome: Outcome) -> Did {
        self.busy = match outcome {
            Outcome::Answered(length) => {
                self.unsent = 0..length;
                None
            }
            Outcome::Working => Some((header, false)),
            Outcome::Waiting => Some((header, true)),
        };
        if matches!(self.busy, Some((_, true))) { Did::Nothing } else { Did::Something }
    }

    fn receive(&mut self, with: &A::With, control: &dyn Stream) -> Did {
        let space = self.parser.space();
        let take = space.len().min(TAKE);
        let came = control.receive(space.get_mut(..take).unwrap_or_default());
        if came == 0 {
            return Did::Nothing;
        }
        let Some(frame) = self.parser.advance(came) else { return Did::Something };
        let (header, reply) = (frame.header, Reply { header: frame.header, out: &mut self.out });
        let outcome = match Request::decode(&frame) {
            Ok(Request::Version(versions)) => version(versions, reply),
            Ok(request) => self.acts.begin(with, &request, reply),
            Err(Status::UnsupportedVersion) => reply.write(Status::UnsupportedVersion, &chosen(0)),
            Err(status) => reply.refused(status, ""),
        };
        let _ = self.take(header, outcome);
        Did::Something
    }

    /// Passes the next event on. A client sees those since it has opened the stream, if this is called at that time.
    fn pass_event(&mut self, events: &dyn Stream) -> Did {
        let session = events.session();
        if session != self.events_session {
            self.events_session = session;
            self.sent_event = self.acts.last_event();
        }
        if session & 1 == 0 {
            return Did::Nothing;
        }
        let Some(event) = self.acts.next_event(self.sent_event) else { return Did::Nothing };
        // An event is much shorter than a frame may be.
        let mut bytes = [0; 512];
        let length = event.event().encode(&mut bytes).unwrap_or(0);
        if !events.send_whole(bytes.get(..length).unwrap_or_default()) {
            return Did::Nothing;
        }
        self.sent_event = event.sequence();
        Did::Something
    }

    /// What requests ask for, for tests.
    pub fn acts_mut(&mut self) -> &mut A {
        &mut self.acts
    }
}

fn chosen(version: u8) -> Chosen<'static> {
    Chosen { min: VERSION, max: VERSION, version, release: env!("CARGO_PKG_VERSION") }
}

fn version(versions: Versions, reply: Reply<'_>) -> Outcome {
    let common = (versions.min..=versions.max).contains(&VERSION);
    reply.done(&chosen(if common { VERSION } else { 0 }))
}

#[cfg(any(test, fuzzing))]
pub mod fake;
#[cfg(all(test, not(loom)))]
pub(crate) mod tests;
