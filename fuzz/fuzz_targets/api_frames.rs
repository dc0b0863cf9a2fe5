//! The frames of the control channel: whatever a stream carries, no panic; each byte is part of a frame, skipped or waited
//! with; what is read is what is written again.
//!
//! `cargo +nightly fuzz run api_frames -- -max_total_time=60`
#![cfg_attr(fuzzing, no_main)]

use doorward_api::{
    Body, Built, Chosen, CounterPage, CpuPage, Created, Detail, Domain, Event, FRAME_MAX, Frame, HEADER_LEN, Info,
    LogChunk, MAX_BODY, Parser, PciPage, Request, VERSION, VcpuPage,
};

#[path = "../input.rs"]
mod input;
use input::Input;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| run(bytes));

/// The first byte says how long the pieces are in which the stream comes, the second whether the buffer is short.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let piece = usize::from(input.byte()) + 1;
    let capacity = if input.byte() == 0xff { HEADER_LEN + 40 } else { FRAME_MAX };
    let mut parser = Parser::new(vec![0; capacity]);
    let (mut fed, mut framed) = (0, 0);
    while !input.0.is_empty() {
        let space = parser.space();
        assert!(!space.is_empty());
        let came = input.bytes(space.len().min(piece));
        space[..came.len()].copy_from_slice(came);
        fed += came.len();
        if let Some(frame) = parser.advance(came.len()) {
            framed += HEADER_LEN + frame.body.len();
            assert!(frame.body.len() == frame.header.length as usize && frame.body.len() <= capacity - HEADER_LEN);
            request(&frame);
            answers(&frame);
        }
        let waits = fed.checked_sub(framed + parser.skipped() as usize).expect("no byte is used twice");
        assert!(waits < capacity);
    }
    // Whatever came before, what comes after a reset is a frame.
    parser.reset();
    let mut out = [0; 64];
    let length = Request::Info.encode(1, &mut out).expect("it is a header");
    parser.space()[..length].copy_from_slice(&out[..length]);
    assert!(parser.advance(length).is_some_and(|frame| Request::decode(&frame) == Ok(Request::Info)));
}

fn request(frame: &Frame<'_>) {
    let Ok(request) = Request::decode(frame) else { return };
    let mut out = vec![0; FRAME_MAX];
    let length = request.encode(frame.header.tag, &mut out).expect("what was read fits");
    let mut again = Parser::new(vec![0; FRAME_MAX]);
    again.space()[..HEADER_LEN].copy_from_slice(&out[..HEADER_LEN]);
    if again.advance(HEADER_LEN).is_none() {
        again.space()[..length - HEADER_LEN].copy_from_slice(&out[HEADER_LEN..length]);
        let frame = again.advance(length - HEADER_LEN).expect("it is complete");
        assert_eq!(Request::decode(&frame), Ok(request));
    }
    // A set of CPUs may have been written longer than need be; all else has one form.
    if frame.header.version == VERSION && !matches!(request, Request::Set(_)) {
        assert_eq!(&out[HEADER_LEN..length], frame.body);
    }
}

/// What is read from this body is what is read again after it was written.
fn same<'a, T: Body<'a> + PartialEq + std::fmt::Debug>(body: &'a [u8], out: &'a mut [u8]) {
    if let Ok(value) = T::read(body) {
        let length = value.write(out).expect("what was read fits");
        assert!(length <= body.len());
        assert_eq!(T::read_all(&out[..length]), Ok(value));
    }
}

fn answers(frame: &Frame<'_>) {
    let mut out = vec![0; MAX_BODY];
    let body = frame.body;
    match frame.header.tag % 12 {
        0 => same::<Chosen>(body, &mut out),
        1 => same::<Info>(body, &mut out),
        2 => same::<Domain>(body, &mut out),
        3 => same::<VcpuPage>(body, &mut out),
        4 => same::<Created>(body, &mut out),
        5 => same::<Built>(body, &mut out),
        6 => same::<PciPage>(body, &mut out),
        7 => same::<CpuPage>(body, &mut out),
        8 => same::<LogChunk>(body, &mut out),
        9 => same::<CounterPage>(body, &mut out),
        10 => same::<Event>(body, &mut out),
        _ => same::<Detail>(body, &mut out),
    }
}
