//! What `dw` does when the hypervisor, or the way to it, does not behave.

mod common;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::{Fake, Manners};
use doorward_api::{DomainState, Kind, Status};

/// The time limit is short only where it is waited for: an answer may come late on a busy machine.
fn fails(manners: Manners, words: &[&str], code: i32, part: &str) -> Fake {
    let busy =
        manners.busy.load(Ordering::Relaxed) > 1000 || manners.refuse.is_some_and(|(_, how, _)| how == Status::Busy);
    let timeout = if manners.silent.is_some() || manners.longer > 0 || busy { "1" } else { "10" };
    let fake = Fake::with(manners);
    let start = Instant::now();
    let (found, out, error) = fake.run(&[&["--timeout", timeout], words].concat());
    assert_eq!((found, out.as_str()), (code, ""), "{words:?}: {error}");
    assert!(error.contains(part), "{words:?}: {error}");
    // Twelve times the timeout at most, and a busy machine.
    assert!(start.elapsed() < Duration::from_secs(40));
    fake
}

#[test]
fn a_refusal_is_one_sentence_and_what_to_do() {
    let fake = Fake::with(Manners {
        refuse: Some((Kind::Pause, Status::WrongState, "it is \x1b[2Jdying")),
        ..Manners::default()
    });
    let (code, _, error) = fake.run(&["pause", "web"]);
    assert_eq!(code, 1);
    assert_eq!(
        error,
        "dw: pause: the domain's state does not allow this: it is ^[[2Jdying\n    `dw list` shows its state\n"
    );
    let (code, _, error) = Fake::new().run(&["pause", "nobody"]);
    assert_eq!((code, error.as_str()), (1, "dw: there is no domain nobody\n    `dw list` lists them\n"));
    let (code, _, error) = Fake::new().run(&["destroy", "5"]);
    assert_eq!((code, error.as_str()), (1, "dw: there is no domain 5\n    `dw list` lists them\n"));
}

#[test]
fn each_status_has_a_sentence() {
    for &status in Status::EVERY {
        // `Ok` is none, `End` ends lists, and `Busy` is repeated until the deadline.
        if matches!(status, Status::Ok) {
            continue;
        }
        let refuse = Some((Kind::Pause, status, ""));
        fails(Manners { refuse, ..Manners::default() }, &["pause", "web"], 1, status.text());
    }
}

#[test]
fn silence_ends_at_the_deadline() {
    let silent = |kind| Manners { silent: Some(kind), ..Manners::default() };
    fails(silent(Kind::Version), &["list"], 4, "did not answer `version` in 1 s\n    --timeout SECONDS");
    fails(silent(Kind::List), &["list"], 4, "did not answer `list`");
    fails(silent(Kind::Destroy), &["destroy", "web"], 4, "did not answer `destroy` in 12 s");
}

#[test]
fn a_port_that_is_closed_instead_of_an_answer_is_an_error() {
    fails(
        Manners { close: Some(Kind::List), ..Manners::default() },
        &["list"],
        4,
        "closed the port instead of answering `list`",
    );
    fails(Manners { close: Some(Kind::Version), ..Manners::default() }, &["list"], 4, "closed the port");
}

#[test]
fn answers_come_through_garbage_in_pieces_and_after_those_for_others() {
    let expected = Fake::new().ok(&["list"]);
    for manners in [
        Manners { garbage: b"garbage \xd7DW\xd7D".to_vec(), ..Manners::default() },
        Manners { stale: true, ..Manners::default() },
        Manners { piece: Some(1), ..Manners::default() },
        Manners { piece: Some(3), stale: true, garbage: vec![0; 50], ..Manners::default() },
        Manners { busy: Arc::new(AtomicU32::new(20)), ..Manners::default() },
    ] {
        assert_eq!(Fake::with(manners).ok(&["list"]), expected);
    }
}

#[test]
fn nothing_but_garbage_is_no_answer() {
    let manners = Manners { garbage: vec![0xd7; 100_000], silent: Some(Kind::Info), ..Manners::default() };
    fails(manners, &["info"], 4, "did not answer `info`");
    // A frame that never ends.
    fails(Manners { longer: 100, ..Manners::default() }, &["info"], 4, "did not answer `version`");
}

#[test]
fn answers_without_sense_are_errors() {
    let empty = |kind| Manners { empty: Some(kind), ..Manners::default() };
    fails(empty(Kind::Info), &["info"], 4, "the answer to `info` makes no sense");
    fails(empty(Kind::List), &["list"], 4, "the answer to `list` makes no sense");
    let backwards = Manners { backwards: true, ..Manners::default() };
    fails(backwards, &["counters"], 4, "the answer to `counters` makes no sense");
    fails(empty(Kind::PciList), &["pci", "list"], 4, "the answer to `pci-list` makes no sense");
}

#[test]
fn another_version_is_refused_with_both_numbers() {
    let manners = Manners { version: Some(2), ..Manners::default() };
    let part =
        "speaks another version of the protocol: release 9.0 speaks 2 to 2, and this dw speaks 1\n    use the dw";
    fails(manners, &["list"], 1, part);
}

#[test]
fn a_hypervisor_that_is_always_busy_is_not_waited_for_for_ever() {
    let manners = Manners { busy: Arc::new(AtomicU32::new(u32::MAX)), ..Manners::default() };
    fails(manners, &["list"], 1, "list: the hypervisor is busy with another request");
}

#[test]
fn without_a_port_it_says_where_to_look() {
    let fake = Fake::new();
    fs::remove_file(fake.folder.join("org.doorward.control")).unwrap();
    let (code, _, error) = fake.run(&["list"]);
    assert_eq!(code, 3);
    assert!(error.starts_with("dw: there is no port org.doorward.control\n"), "{error}");
    let (code, _, error) = fake.run(&["--ports", "/nonexistent", "list"]);
    assert_eq!(code, 3, "{error}");
}

#[test]
fn a_domain_whose_creation_fails_is_taken_back() {
    for (kind, gone_by) in [
        (Kind::Image, Some("Abort(8)")),
        (Kind::ImageChunk, Some("Abort(8)")),
        // The hypervisor takes it back by itself.
        (Kind::Build, None),
        (Kind::Set, Some("Destroy(8)")),
        (Kind::Start, Some("Destroy(8)")),
    ] {
        let fake = Fake::with(Manners { refuse: Some((kind, Status::NoMemory, "")), ..Manners::default() });
        let kernel = fake.kernel(40_000);
        let (code, out, error) =
            fake.run(&["create", "--name", "a", "--memory", "32", "--kernel", &kernel, "--cpus", "1"]);
        assert_eq!((code, out.as_str()), (1, ""), "{error}");
        assert_eq!(
            error,
            format!(
                "dw: a: {}: there is not enough free memory\n    `dw info` shows what is free; give the domain less, or end another one\n",
                kind.label()
            )
        );
        let asked = fake.asked();
        match gone_by {
            Some(expected) => assert_eq!(asked.last().unwrap(), expected),
            None => assert_eq!(asked.last().unwrap(), "Build(8)"),
        }
    }
}

#[test]
fn the_console_of_a_new_domain_is_open_before_the_domain_runs() {
    // The start is never answered, so what comes after it never happens.
    let fake = Fake::with(Manners { silent: Some(Kind::Start), ..Manners::default() });
    let kernel = fake.kernel(64);
    let (opened, seen) = std::sync::mpsc::channel();
    let _server = common::port(&fake.folder, "domain.a.console", move |_port| opened.send(()).unwrap());
    let words = ["create", "--timeout", "1", "-c", "--name", "a", "--memory", "32", "--kernel", &kernel];
    let (code, _, error) = fake.run(&words);
    assert_eq!(code, 4, "{error}");
    seen.recv_timeout(Duration::from_secs(5)).expect("the console was opened");
    assert_eq!(fake.asked().last().unwrap(), "Destroy(8)");
}

#[test]
fn functions_go_back_to_their_drivers_if_a_creation_fails() {
    let fake = Fake::with(Manners { refuse: Some((Kind::Build, Status::BadKernel, "")), ..Manners::default() });
    let kernel = fake.kernel(64);
    let device = fake.folder.join("sys/bus/pci/devices/0000:00:03.0");
    fs::create_dir_all(&device).unwrap();
    let (code, _, error) =
        fake.run(&["create", "--name", "a", "--memory", "32", "--kernel", &kernel, "--pci", "00:03.0"]);
    assert_eq!(code, 1, "{error}");
    assert_eq!(fs::read_to_string(device.join("driver_override")).unwrap(), "\n");
    let probed = fs::read_to_string(fake.folder.join("sys/bus/pci/drivers_probe")).unwrap();
    assert_eq!(probed, "0000:00:03.0");
}

#[test]
fn a_client_that_is_killed_leaves_no_domain_and_the_next_one_is_served() {
    for silent in [Kind::Image, Kind::ImageChunk, Kind::Build] {
        let fake = Fake::with(Manners { silent: Some(silent), ..Manners::default() });
        let kernel = fake.kernel(40_000);
        let words = ["create", "--name", "a", "--memory", "32", "--kernel", &kernel];
        let mut child = fake.dw(&words).spawn().unwrap();
        fake.until(|state| match silent {
            Kind::Image | Kind::ImageChunk => state.asked.iter().any(|asked| asked.starts_with("Image(")),
            _ => state.asked.iter().any(|asked| asked.starts_with("Build(")),
        });
        child.kill().unwrap();
        child.wait().unwrap();
        fake.until(|state| !state.domains.values().any(|dom| dom.state == DomainState::Building));
        assert_eq!(fake.ok(&["list"]).lines().count(), 4);
    }
}
