use crate::wire::Reader;
use crate::*;
use proptest::prelude::*;

/// The frame of a request, as bytes.
fn bytes_of(request: &Request, tag: u32) -> Vec<u8> {
    let mut out = [0; FRAME_MAX];
    let length = request.encode(tag, &mut out).unwrap();
    out[..length].to_vec()
}

/// Feeds a parser in pieces of `piece` bytes, and calls `take` with each frame.
fn feed(parser: &mut Parser<Vec<u8>>, mut stream: &[u8], piece: usize, take: &mut dyn FnMut(Frame)) {
    while !stream.is_empty() {
        let space = parser.space();
        assert!(!space.is_empty(), "there is always room for what is waited for");
        let count = space.len().min(piece).min(stream.len());
        space[..count].copy_from_slice(&stream[..count]);
        stream = &stream[count..];
        if let Some(frame) = parser.advance(count) {
            take(frame);
        }
    }
}

fn parser() -> Parser<Vec<u8>> {
    Parser::new(vec![0; FRAME_MAX])
}

/// All frames of a stream: kind, tag and body.
fn frames(stream: &[u8], piece: usize) -> Vec<(u16, u32, Vec<u8>)> {
    let mut found = Vec::new();
    feed(&mut parser(), stream, piece, &mut |frame| {
        found.push((frame.header.kind, frame.header.tag, frame.body.to_vec()));
    });
    found
}

/// The same request, decoded from its bytes.
fn assert_survives(request: Request) {
    let stream = bytes_of(&request, 7);
    let mut seen = 0;
    feed(&mut parser(), &stream, 5, &mut |frame| {
        assert_eq!(Request::decode(&frame), Ok(request));
        assert_eq!(frame.header.tag, 7);
        seen += 1;
    });
    assert_eq!(seen, 1);
}

fn name(text: &str) -> Name<'_> {
    Name::new(text).unwrap()
}

fn create() -> Create<'static> {
    Create {
        vcpus: 2,
        memory: 0x1000_0000,
        weight: 512,
        cap: 50,
        on_crash: OnCrash::Restart,
        watchdog_s: 9,
        console: true,
        direct: true,
        allow_no_reset: false,
        name: name("web"),
        cmdline: "quiet",
        functions: List::of(&[Sbdf(0x0001_0318)]),
    }
}

fn some_requests() -> Vec<Request<'static>> {
    let mut cpus = CpuSet::EMPTY;
    assert!(cpus.insert(0) && cpus.insert(77));
    let set = |setting| Request::Set(Set { domain: 3, vcpu: ALL, setting });
    vec![
        Request::Version(Versions { min: 1, max: 3 }),
        Request::Info,
        Request::List(3),
        Request::Lookup(name("web")),
        Request::Vcpus(VcpusFrom { domain: 3, from: 1 }),
        Request::Create(create()),
        Request::Image(Image { domain: 3, kind: ImageKind::Ramdisk, size: 1 << 33 }),
        Request::ImageChunk(ImageChunk { domain: 3, kind: ImageKind::Kernel, offset: 1 << 32, bytes: b"kernel" }),
        Request::ImageChunk(ImageChunk { domain: 3, kind: ImageKind::Kernel, offset: 0, bytes: &[0xd7; CHUNK_MAX] }),
        Request::Build(3),
        Request::Abort(3),
        Request::Start(Start { domain: 3, paused: true }),
        Request::Pause(3),
        Request::Unpause(3),
        Request::Shutdown(3),
        Request::Reset(3),
        Request::Destroy(3),
        set(Setting::Weight(1)),
        set(Setting::Cap(2)),
        set(Setting::Affinity(cpus)),
        set(Setting::Affinity(CpuSet::ALL)),
        set(Setting::Affinity(CpuSet::EMPTY)),
        set(Setting::Vwfi(Vwfi::Trap)),
        set(Setting::Direct(true)),
        set(Setting::OnCrash(OnCrash::Preserve)),
        set(Setting::Name(name("db"))),
        Request::Watchdog(Watchdog { domain: 3, seconds: 30 }),
        Request::PciList(1),
        Request::PciAssign(Assign { domain: 3, function: Sbdf(0x18), allow_no_reset: true }),
        Request::PciRelease(Sbdf(0x18)),
        Request::Cpus(4),
        Request::CpuOffline(1),
        Request::CpuOnline(1),
        Request::Log(1 << 40),
        Request::Counters(CountersFrom { scope: Scope::Domain, id: 3, from: 64 }),
    ]
}

#[test]
fn each_request_is_read_as_it_was_written() {
    let requests = some_requests();
    for kind in Kind::EVERY {
        assert!(requests.iter().any(|request| request.kind() == *kind), "{}", kind.label());
    }
    requests.into_iter().for_each(assert_survives);
}

/// The bytes are from docs/management.md, by hand.
#[test]
fn requests_have_the_documented_bytes() {
    #[rustfmt::skip]
    let expected: [(Request, &[u8]); 5] = [
        (Request::Version(Versions { min: 1, max: 1 }), &[
            0xd7, 0x44, 0x57, 0x01,  0x01, 0x00,  0x00, 0x00,  0x04, 0x03, 0x02, 0x01,  0x02, 0x00, 0x00, 0x00,
            0x01, 0x01,
        ]),
        (Request::Info, &[
            0xd7, 0x44, 0x57, 0x01,  0x02, 0x00,  0x00, 0x00,  0x04, 0x03, 0x02, 0x01,  0x00, 0x00, 0x00, 0x00,
        ]),
        (Request::Create(create()), &[
            0xd7, 0x44, 0x57, 0x01,  0x10, 0x00,  0x00, 0x00,  0x04, 0x03, 0x02, 0x01,  0x2e, 0x00, 0x00, 0x00,
            0x02, 0x00, 0x00, 0x00,                             // vCPUs
            0x00, 0x00, 0x00, 0x10, 0x00, 0x00, 0x00, 0x00,     // memory
            0x00, 0x02, 0x00, 0x00,  0x32, 0x00, 0x00, 0x00,    // weight, cap
            0x01,  0x09, 0x00, 0x00, 0x00,                      // on-crash, watchdog
            0x01, 0x01, 0x00,                                   // console, direct, allow-no-reset
            0x03, 0x00, b'w', b'e', b'b',
            0x05, 0x00, b'q', b'u', b'i', b'e', b't',
            0x01, 0x00,  0x18, 0x03, 0x01, 0x00,                // 0001:03:03.0
        ]),
        (Request::ImageChunk(ImageChunk { domain: 5, kind: ImageKind::Ramdisk, offset: 0x1_0000, bytes: &[0xaa, 0xbb] }), &[
            0xd7, 0x44, 0x57, 0x01,  0x12, 0x00,  0x00, 0x00,  0x04, 0x03, 0x02, 0x01,  0x11, 0x00, 0x00, 0x00,
            0x05, 0x00, 0x00, 0x00,  0x01,  0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00,  0x02, 0x00, 0xaa, 0xbb,
        ]),
        (Request::Set(Set { domain: 5, vcpu: 1, setting: Setting::Affinity({ let mut set = CpuSet::EMPTY; set.insert(9); set }) }), &[
            0xd7, 0x44, 0x57, 0x01,  0x26, 0x00,  0x00, 0x00,  0x04, 0x03, 0x02, 0x01,  0x0d, 0x00, 0x00, 0x00,
            0x05, 0x00, 0x00, 0x00,  0x01, 0x00, 0x00, 0x00,  0x02,  0x02, 0x00, 0x00, 0x02,
        ]),
    ];
    for (request, bytes) in expected {
        assert_eq!(bytes_of(&request, 0x0102_0304), bytes, "{request:?}");
    }
}

#[test]
fn an_event_has_the_documented_bytes() {
    let event =
        Event { sequence: 0x1_0000_0002, time_us: 3, kind: EventKind::Crashed, domain: 4, name: "db", text: "why" };
    let mut out = [0; 128];
    let length = event.encode(&mut out).unwrap();
    #[rustfmt::skip]
    let expected = [
        0xd7, 0x44, 0x57, 0x01,  0x00, 0x01,  0x00, 0x00,  0x02, 0x00, 0x00, 0x00,  0x1e, 0x00, 0x00, 0x00,
        0x02, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00,  0x03, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x05,  0x04, 0x00, 0x00, 0x00,  0x02, 0x00, b'd', b'b',  0x03, 0x00, b'w', b'h', b'y',
    ];
    assert_eq!(&out[..length], expected);
    let mut read = false;
    feed(&mut parser(), &expected, 3, &mut |frame| {
        assert_eq!(Event::decode(&frame), Ok(event));
        read = true;
    });
    assert!(read);
}

#[test]
fn an_answer_repeats_kind_and_tag_and_carries_the_status() {
    let stream = bytes_of(&Request::Create(create()), 0x55);
    let mut answer = Vec::new();
    feed(&mut parser(), &stream, 4096, &mut |frame| {
        let mut out = [0; 64];
        let length = frame.answer(Status::NameTaken, &Detail { text: "web" }, &mut out).unwrap();
        answer = out[..length].to_vec();
    });
    #[rustfmt::skip]
    assert_eq!(answer, [
        0xd7, 0x44, 0x57, 0x01,  0x10, 0x00,  0x11, 0x00,  0x55, 0x00, 0x00, 0x00,  0x05, 0x00, 0x00, 0x00,
        0x03, 0x00, b'w', b'e', b'b',
    ]);
}

#[test]
fn answers_with_lists_are_read_as_they_were_written() {
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
            sbdf: Sbdf(16),
            domain: ALL,
            vendor: 0x1b36,
            device: 0x10,
            class: 0x01_08_02,
            assignable: true,
            why: "",
        },
    ];
    let page = PciPage { next: ALL, functions: List::of(&functions) };
    let mut out = [0; 256];
    let length = page.write(&mut out).unwrap();
    let read = PciPage::read(&out[..length]).unwrap();
    assert_eq!(read, page);
    assert_eq!(read.functions.iter().collect::<Vec<_>>(), functions);
    assert_eq!((read.functions.len(), read.functions.is_empty()), (2, false));
    for cut in 0..length {
        assert_eq!(PciPage::read(&out[..cut]), Err(Malformed), "{cut}");
    }
}

#[test]
fn an_answer_may_have_more_than_is_known_and_a_request_may_not() {
    assert_eq!(Created::read(&[1, 0, 0, 0, 99]), Ok(Created { domain: 1 }));
    let mut stream = bytes_of(&Request::Pause(1), 0);
    stream.push(0);
    stream[12] += 1;
    feed(&mut parser(), &stream, 99, &mut |frame| assert_eq!(Request::decode(&frame), Err(Status::Malformed)));
}

#[test]
fn a_request_that_is_unknown_damaged_or_of_another_version_is_told_apart() {
    let decode = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut stream = bytes_of(&Request::Start(Start { domain: 1, paused: false }), 0);
        change(&mut stream);
        let mut decoded = None;
        feed(&mut parser(), &stream, 99, &mut |frame| decoded = Some(Request::decode(&frame).map(|r| r.kind())));
        decoded.unwrap()
    };
    assert_eq!(decode(&|_| {}), Ok(Kind::Start));
    assert_eq!(decode(&|stream| stream[4] = 0xee), Err(Status::UnknownRequest));
    assert_eq!(decode(&|stream| stream[3] = 2), Err(Status::UnsupportedVersion));
    assert_eq!(decode(&|stream| stream[6] = 1), Err(Status::Malformed), "a request has no status");
    assert_eq!(decode(&|stream| stream[20] = 2), Err(Status::Malformed), "a boolean is 0 or 1");
    assert_eq!(
        decode(&|stream| {
            stream.truncate(18);
            (stream[3], stream[4], stream[12], stream[16], stream[17]) = (9, 1, 2, 9, 9);
        }),
        Ok(Kind::Version),
        "`version` is read whatever the version is"
    );
}

#[test]
fn what_exceeds_its_limit_is_malformed() {
    let long = "x".repeat(CMDLINE_MAX + 1);
    let mut out = [0; FRAME_MAX];
    for (cmdline, expected) in [(&long[1..], true), (&long, false), ("a\0b", false)] {
        let length = Request::Create(Create { cmdline, ..create() }).encode(0, &mut out).unwrap();
        feed(&mut parser(), &out[..length], 4096, &mut |frame| assert_eq!(Request::decode(&frame).is_ok(), expected));
    }
    let bytes = &[0; CHUNK_MAX + 1];
    let chunk = Request::ImageChunk(ImageChunk { domain: 0, kind: ImageKind::Kernel, offset: 0, bytes });
    assert_eq!(chunk.encode(0, &mut [0; FRAME_MAX + 9]), Err(NoRoom));
}

#[test]
fn a_buffer_that_is_too_short_is_an_error_at_each_length() {
    let request = Request::Create(create());
    let whole = bytes_of(&request, 0);
    for length in 0..whole.len() {
        assert_eq!(request.encode(0, &mut vec![0; length]), Err(NoRoom));
    }
    assert_eq!(request.encode(0, &mut vec![0; whole.len()]), Ok(whole.len()));
}

#[test]
fn names_are_letters_digits_and_a_few_signs() {
    for good in ["a", "web", "Web-1.example_com", "0a", &"x".repeat(63)] {
        assert_eq!(Name::new(good).map(Name::as_str), Ok(good));
    }
    assert_eq!(Name::new(""), Err(InvalidName::Length));
    assert_eq!(Name::new(&"x".repeat(64)), Err(InvalidName::Length));
    for bad in ["-a", ".a", "a b", "a/b", "ä", "a\n"] {
        assert_eq!(Name::new(bad), Err(InvalidName::Character), "{bad:?}");
    }
    assert_eq!(Name::new("17"), Err(InvalidName::Number));
}

#[test]
fn functions_are_named_as_lspci_names_them() {
    for (text, number) in
        [("0000:00:03.0", 0x18), ("00:03.0", 0x18), ("12ab:fe:1f.7", 0x12ab_feff), ("1:2:3.4", 0x1_021c)]
    {
        assert_eq!(text.parse(), Ok(Sbdf(number)));
    }
    assert_eq!(Sbdf(0x12ab_feff).to_string(), "12ab:fe:1f.7");
    for bad in ["", "00:03", "00:20.0", "00:03.8", "0:100:3.0", "10000:0:3.0", "+0:03.0", "0:0:0:3.0", "00:.0"] {
        assert_eq!(bad.parse::<Sbdf>(), Err(Malformed), "{bad:?}");
    }
}

#[test]
fn a_set_has_cpus_up_to_its_limit() {
    let mut set = CpuSet::EMPTY;
    assert!(set.is_empty() && !set.insert(CpuSet::CPUS) && !set.contains(CpuSet::CPUS));
    assert!(set.insert(CpuSet::CPUS - 1));
    assert_eq!(set.iter().collect::<Vec<_>>(), [CpuSet::CPUS - 1]);
    assert_eq!(CpuSet::ALL.iter().count(), 1024);
    let mut long = vec![129, 0];
    long.resize(2 + 129, 0);
    assert_eq!(CpuSet::take(&mut Reader::new(&long)), Err(Malformed));
}

#[test]
fn numbers_and_statuses_are_found_again() {
    for kind in Kind::EVERY {
        assert_eq!(Kind::from_number(*kind as u16), Some(*kind));
        assert_ne!(*kind as u16, EVENT);
    }
    for status in Status::EVERY {
        assert_eq!(Status::from_number(*status as u16), Some(*status));
        assert!(!status.text().ends_with('.') && status.text().is_ascii());
    }
    assert_eq!((Kind::from_number(0), Status::from_number(0xffff)), (None, None));
}

#[test]
fn a_stream_is_in_step_again_after_garbage() {
    let one = bytes_of(&Request::Lookup(name("web")), 1);
    let two = bytes_of(&Request::Info, 2);
    // Half of a magic, a header with a body that is too long, a magic in the middle of it, a truncated header.
    let mut long = one[..16].to_vec();
    long[14] = 1;
    for garbage in [&b"\xd7"[..], b"\xd7D", b"xl list\r\n", &long, b"\xd7\xd7D\xd7DW\x01"[..4].as_ref(), &[0; 99]] {
        let stream = [garbage, &one, garbage, &two].concat();
        for piece in [1, 2, 15, 16, 17, 4096] {
            let found: Vec<u32> = frames(&stream, piece).iter().map(|frame| frame.1).collect();
            assert_eq!(found, [1, 2], "{garbage:x?} in pieces of {piece}");
        }
        let mut parser = parser();
        feed(&mut parser, &stream, 3, &mut |_| {});
        assert_eq!(parser.skipped(), 2 * garbage.len() as u64);
    }
}

#[test]
fn a_header_has_a_magic_and_a_length_that_is_allowed() {
    let header = Header { version: 9, kind: 0x102, status: 3, tag: 4, length: MAX_BODY as u32 };
    assert_eq!(Header::read(&header.bytes()), Some(header));
    assert_eq!(Header::read(&Header { length: MAX_BODY as u32 + 1, ..header }.bytes()), None);
    for at in 0..3 {
        let mut bytes = header.bytes();
        bytes[at] ^= 1;
        assert_eq!(Header::read(&bytes), None);
    }
}

#[test]
fn after_a_reset_the_rest_of_a_frame_is_not_waited_for() {
    let (one, two) = (bytes_of(&Request::Lookup(name("web")), 1), bytes_of(&Request::Info, 2));
    for cut in 1..one.len() {
        let mut parser = parser();
        feed(&mut parser, &one[..cut], 4, &mut |_| panic!("it is not complete"));
        parser.reset();
        let mut tags = Vec::new();
        feed(&mut parser, &two, 4, &mut |frame| tags.push(frame.header.tag));
        assert_eq!((tags, parser.skipped()), (vec![2], 0), "{cut}");
    }
}

#[test]
fn a_frame_that_is_longer_than_the_buffer_is_garbage() {
    let (one, two) = (bytes_of(&Request::Lookup(name("a-name-of-length-20x")), 1), bytes_of(&Request::Info, 2));
    let mut parser = Parser::new(vec![0; HEADER_LEN + 21]);
    let mut tags = Vec::new();
    feed(&mut parser, &[&one[..], &two[..]].concat(), 4, &mut |frame| tags.push(frame.header.tag));
    assert_eq!((tags, parser.skipped()), (vec![2], one.len() as u64));
    assert!(Parser::new([0; 3]).space().is_empty());
}

proptest! {
    #[test]
    fn frames_are_found_however_the_stream_is_cut(
        gaps in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8),
        piece in 1_usize..64,
    ) {
        let requests = some_requests();
        let mut stream = Vec::new();
        for (tag, gap) in gaps.iter().enumerate() {
            // A gap has no magic, and does not end with half of one.
            stream.extend(gap.iter().map(|&byte| if byte == MAGIC[0] { 0 } else { byte }));
            stream.extend(bytes_of(&requests[tag * 5 % requests.len()], tag as u32));
        }
        let tags: Vec<u32> = frames(&stream, piece).iter().map(|frame| frame.1).collect();
        prop_assert_eq!(tags, (0..gaps.len() as u32).collect::<Vec<_>>());
    }

    #[test]
    fn a_damaged_request_is_read_as_what_its_bytes_say_or_not_at_all(
        index in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let requests = some_requests();
        let mut stream = bytes_of(index.get(&requests), 1);
        let length = stream.len();
        stream[at.index(length)] = byte;
        stream.truncate(cut.index(length) + 1);
        feed(&mut parser(), &stream, 7, &mut |frame| {
            if let Ok(request) = Request::decode(&frame) {
                let again = bytes_of(&request, frame.header.tag);
                if frame.header.version == VERSION && !matches!(request, Request::Set(_)) {
                    assert_eq!((&again[..16], &again[16..]), (&frame.header.bytes()[..], frame.body));
                }
            }
        });
    }
}

/// The rows of a table of docs/management.md whose first two columns are a number and this.
fn documented(number: u16, label: &str) -> bool {
    let page = include_str!("../../../docs/management.md");
    page.lines().any(|line| line.starts_with(&format!("| {number} | `{label}` |")))
}

#[test]
fn the_documentation_has_each_request_and_each_status() {
    for kind in Kind::EVERY {
        assert!(documented(*kind as u16, kind.label()), "{}", kind.label());
    }
    for status in Status::EVERY {
        assert!(documented(*status as u16, &format!("{status:?}")), "{status:?}");
    }
}
