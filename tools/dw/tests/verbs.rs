//! What each verb asks and prints, with a hypervisor that behaves.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::time::Duration;

use common::{Fake, Manners, image, port};
use doorward_api::{Body, DomainState, Event, EventKind, Kind, Status};

#[test]
fn list_has_the_columns_of_xl() {
    let fake = Fake::new();
    assert_eq!(
        fake.ok(&["list"]),
        "\
Name                        ID   Mem VCPUs State        Time(s)
dom0                         0  1024     2 r-----          61.9
web                          3   256     2 -b----          61.9
db                           7    64     2 --p---          61.9
"
    );
    assert_eq!(fake.ok(&["list", "web", "7"]).lines().count(), 3);
    let verbose = fake.ok(&["list", "-v", "web"]);
    assert!(
        verbose.starts_with("Name                        ID   Mem VCPUs State        Time(s) Weight Cap Direct PCI")
    );
    assert!(verbose.lines().nth(1).unwrap().contains("blocked"), "{verbose}");
}

#[test]
fn json_has_the_facts_by_name() {
    let fake = Fake::new();
    let out = fake.ok(&["--json", "list", "web"]);
    let value: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(value[0]["name"], "web");
    assert_eq!((&value[0]["id"], &value[0]["memory"]), (&3.into(), &(256 << 20).into()));
    assert_eq!(value[0]["state"], "blocked");
    for words in [&["vcpu-list"][..], &["info"], &["pci", "list"], &["cpu", "list"], &["counters"]] {
        let out = fake.ok(&[words, &["--json"]].concat());
        serde_json::from_str::<serde_json::Value>(&out).unwrap();
    }
}

#[test]
fn vcpus_cpus_functions_and_counters_are_tables() {
    let fake = Fake::new();
    assert_eq!(
        fake.ok(&["vcpu-list", "web"]),
        "\
Name                        ID  VCPU   CPU State   Time(s) Direct Affinity
web                          3     0     1 -b-        30.9 yes    all
web                          3     1     - -b-        30.9 yes    2
"
    );
    assert_eq!(
        fake.ok(&["cpu", "list"]),
        " CPU MPIDR      State   Runs
   0 0x0        online  web vCPU1
   1 0x1        online  idle
   2 0x2        offline -
"
    );
    assert_eq!(
        fake.ok(&["pci", "list"]),
        "\
Function     Domain       Vendor:Device Class  Can be given away
0000:00:01.0 dom0         1af4:1041     020000 no: no SMMU limits its DMA
0000:00:03.0 web          1b36:0010     010802 yes
"
    );
    assert_eq!(
        fake.ok(&["counters"]),
        "\
Counter                         Count
exit irq                         3000
doorbell                           12
"
    );
    assert!(fake.ok(&["counters", "-a", "--cpu", "2"]).contains("exit smc"));
    fake.ok(&["counters", "--domain", "web"]);
    let asked = fake.asked();
    assert!(asked.contains(&"Counters(CountersFrom { scope: Cpu, id: 2, from: 2 })".to_owned()), "{asked:?}");
    assert!(asked.contains(&"Counters(CountersFrom { scope: Domain, id: 3, from: 0 })".to_owned()), "{asked:?}");
}

#[test]
fn info_is_one_fact_a_line() {
    assert_eq!(
        Fake::new().ok(&["info"]),
        "\
machine:          linux,dummy-virt
uptime:           6 s
CPUs:             4, 3 in service
timer:            62500000 Hz
memory:           2048 MiB
free for domains: 512 MiB
free heap:        1.5 MiB
quarantined:      0 B
domains:          3 of 256, with 6 vCPUs
interrupts:       GICv4.1 with 1 ITSs, 6 of 512 vPEs in use; device interrupts go to guests directly
SMMUs:            1
scheduler:        credit, vwfi=auto
command line:     sched=credit
"
    );
}

#[test]
fn verbs_about_a_domain_ask_for_it_by_id() {
    for (words, expected) in [
        (&["pause", "web"][..], &["Pause(3)"][..]),
        (&["unpause", "3"], &["Unpause(3)"]),
        (&["reset", "web"], &["Reset(3)"]),
        (&["reboot", "web"], &["Reset(3)"]),
        (&["destroy", "web"], &["Destroy(3)"]),
        (&["start", "-p", "db"], &["Start(Start { domain: 7, paused: true })"]),
        (&["shutdown", "web"], &["Shutdown(3)"]),
        (&["rename", "web", "www"], &["set 3 -1 Name(\"www\")"]),
        (&["vcpu-pin", "web", "1", "0-1,3"], &["set 3 1 cpus {0, 1, 3}"]),
        (&["set", "web", "--weight", "512", "--cap", "50"], &["set 3 -1 Weight(512)", "set 3 -1 Cap(50)"]),
        (&["set", "web", "--vcpu", "1", "--direct", "false"], &["set 3 1 Direct(false)"]),
        (&["set", "web", "--vwfi", "trap", "--cpus", "2"], &["set 3 -1 cpus {2}", "set 3 -1 Vwfi(Trap)"]),
        (&["set", "web", "--watchdog", "30"], &["Watchdog(Watchdog { domain: 3, seconds: 30 })"]),
        (&["set", "web", "--on-crash", "restart"], &["set 3 -1 OnCrash(Restart)"]),
        (&["cpu", "offline", "2"], &["CpuOffline(2)"]),
        (&["cpu", "online", "2"], &["CpuOnline(2)"]),
        (
            &["pci", "assign", "web", "00:03.0"],
            &[
                "PciList(0)",
                "PciList(1)",
                "PciAssign(Assign { domain: 3, function: 0000:00:03.0, allow_no_reset: false })",
            ],
        ),
        (&["pci", "release", "0000:00:03.0"], &["PciRelease(0000:00:03.0)"]),
    ] {
        let fake = Fake::new();
        assert_eq!(fake.ok(words), "", "{words:?}");
        let asked = fake.asked();
        assert!(
            asked.ends_with(&expected.iter().map(|&text| text.to_owned()).collect::<Vec<_>>()),
            "{words:?}: {asked:?}"
        );
        assert!(asked.len() <= expected.len() + 1, "{asked:?}");
    }
}

#[test]
fn a_domain_is_created_from_a_file() {
    let fake = Fake::new();
    let kernel = fake.kernel(50_000);
    fake.write("initrd", b"cpio");
    let file = fake.write(
        "shop.toml",
        "name = \"shop\"\nvcpus = 2\nmemory = 63\nkernel = \"Image\"\nramdisk = \"initrd\"\ncpus = \"0-1\"\n",
    );
    let (code, out, error) = fake.run(&["create", &file, "--cmdline", "-x quiet"]);
    assert_eq!((code, out.as_str()), (0, ""), "{error}");
    assert_eq!(error, "shop: started as domain 8; building it took 4321 us, in 40 steps of at most 180 us\n");
    let state = fake.state.lock().unwrap();
    assert_eq!(state.images[&(8, 0)].1, fs::read(kernel).unwrap());
    assert_eq!(state.images[&(8, 1)].1, b"cpio");
    assert_eq!(state.domains[&8].state, DomainState::Running);
    assert_eq!(
        state.asked,
        [
            "Create(Create { vcpus: 2, memory: 67108864, weight: 0, cap: 0, on_crash: Destroy, watchdog_s: 0, \
             console: true, direct: true, allow_no_reset: false, name: \"shop\", cmdline: \"-x quiet\", functions: [] })",
            "Image(Image { domain: 8, kind: Kernel, size: 50000 })",
            "Image(Image { domain: 8, kind: Ramdisk, size: 4 })",
            "Build(8)",
            "set 8 -1 cpus {0, 1}",
            "Start(Start { domain: 8, paused: false })",
        ]
    );
}

#[test]
fn a_domain_is_created_by_options_paused_or_not_started() {
    let fake = Fake::new();
    let kernel = fake.kernel(64);
    let create = ["create", "--kernel", &kernel, "--memory", "32"];
    let out = fake.ok(&[&create[..], &["--name", "a1", "-p", "--json"]].concat());
    assert_eq!(out, "{\"name\":\"a1\",\"id\":8,\"build_us\":4321,\"longest_step_us\":180,\"steps\":40}\n");
    fake.ok(&[&create[..], &["--name", "a2", "--no-start", "-q"]].concat());
    let before = fake.asked().len();
    fake.ok(&[&create[..], &["--name", "a3", "-n"]].concat());
    assert_eq!(fake.asked().len(), before, "a dry run asks nothing");
    let state = fake.state.lock().unwrap();
    assert_eq!((state.domains[&8].state, state.domains[&9].state), (DomainState::Paused, DomainState::Built));
    assert_eq!((state.domains.len(), state.asked.last().unwrap().as_str()), (5, "Build(9)"));
}

#[test]
fn what_is_wrong_with_the_files_is_said_before_anything_is_asked() {
    let fake = Fake::new();
    let good = fake.kernel(64);
    let zipped = fake.write("Image.gz", [0x1f, 0x8b, 8, 0]);
    let empty = fake.write("empty", b"");
    let text = fake.write("text", b"#!/bin/sh\n");
    let wrong = fake.write("wrong.toml", "name = \"a\"\nmemory = 32\nkernl = \"Image\"\n");
    let base = ["create", "--name", "a", "--memory", "32", "--kernel"];
    for (words, part) in [
        ([&base[..], &[&zipped]].concat(), "it is compressed by gzip\n    unpack it: zcat"),
        ([&base[..], &[&empty]].concat(), "the file is empty"),
        ([&base[..], &[&text]].concat(), "it is no arm64 Image"),
        ([&base[..], &["/nonexistent"]].concat(), "the kernel, /nonexistent: No such file or directory"),
        ([&base[..], &[&good, "--ramdisk", "/"]].concat(), "the ramdisk, /: this is no file"),
        (vec!["create", &wrong], "wrong.toml:3: unknown field `kernl`, expected one of"),
        (vec!["create", "/nonexistent.toml"], "/nonexistent.toml: No such file"),
        (vec!["create", "--name", "a"], "the domain has no memory"),
        (vec!["create", "--name", "a/b"], "`a/b`: a name has letters, digits"),
        (vec!["create", "--memory", "lots"], "this is no size, such as 512M or 2G"),
        (vec!["set", "web"], "required"),
        (vec!["pci", "assign", "web", "eth0"], "`eth0` is no PCI function"),
        (vec!["console", "dom0"], "dom0's console is not a port"),
        (vec!["console", "db"], "db has no console"),
    ] {
        let (code, out, error) = fake.run(&words);
        assert_eq!((code, out.as_str()), (2, ""), "{words:?}: {error}");
        assert!(error.contains(part), "{words:?}: {error}");
    }
    let changes = fake.asked().into_iter().filter(|asked| !asked.starts_with("Lookup")).count();
    assert_eq!(changes, 0);
}

#[test]
fn a_driver_of_dom0_is_unbound_and_bound_again() {
    let fake = Fake::new();
    let device = fake.folder.join("sys/bus/pci/devices/0000:00:03.0");
    let driver = fake.folder.join("sys/bus/pci/drivers/nvme");
    fs::create_dir_all(&device).unwrap();
    fs::create_dir_all(&driver).unwrap();
    std::os::unix::fs::symlink(&driver, device.join("driver")).unwrap();
    let read = |path: &str| fs::read_to_string(fake.folder.join("sys/bus/pci").join(path)).unwrap();

    let (code, _, error) = fake.run(&["pci", "assign", "web", "00:03.0"]);
    assert_eq!((code, error.as_str()), (0, "0000:00:03.0: taking it from dom0's driver nvme\n"));
    assert_eq!(read("drivers/nvme/unbind"), "0000:00:03.0");
    assert_eq!(read("devices/0000:00:03.0/driver_override"), "doorward-domain");

    fake.ok(&["pci", "release", "00:03.0"]);
    assert_eq!(read("devices/0000:00:03.0/driver_override"), "\n");
    assert_eq!(read("drivers_probe"), "0000:00:03.0");
}

#[test]
fn a_driver_stays_bound_if_the_function_cannot_be_given_away() {
    let refuses = Manners { refuse: Some((Kind::PciList, Status::NotSupported, "")), ..Manners::default() };
    for (manners, function, why) in [
        (Manners::default(), "00:01.0", "no SMMU limits its DMA"),
        (Manners::default(), "00:09.0", "there is no such PCI function"),
        (refuses, "00:03.0", "this is not supported here"),
    ] {
        let fake = Fake::with(manners);
        let device = fake.folder.join("sys/bus/pci/devices").join(format!("0000:{function}"));
        let driver = fake.folder.join("sys/bus/pci/drivers/nvme");
        fs::create_dir_all(&device).unwrap();
        fs::create_dir_all(&driver).unwrap();
        std::os::unix::fs::symlink(&driver, device.join("driver")).unwrap();
        let kernel = fake.kernel(64);
        for words in [
            &["pci", "assign", "web", function][..],
            &["create", "--name", "a", "--memory", "32", "--kernel", &kernel, "--pci", function],
        ] {
            let (code, _, error) = fake.run(words);
            assert!(code == 1 && error.contains(why), "{error}");
            assert!(!driver.join("unbind").exists() && !device.join("driver_override").exists(), "{error}");
        }
    }
}

#[test]
fn a_shutdown_waits_and_one_that_cannot_be_asked_does_not_keep_the_others() {
    let fake = Fake::new();
    fake.ok(&["shutdown", "-w", "5", "web"]);
    let fake = Fake::new();
    let (code, _, error) = fake.run(&["shutdown", "--all"]);
    assert_eq!(code, 1);
    assert!(error.starts_with("dw: db: shutdown: this is not supported here: it has no power button\n"), "{error}");
    assert!(error.contains("`dw destroy db`"));
    assert!(!fake.state.lock().unwrap().domains.contains_key(&3), "web was asked");
}

#[test]
fn the_log_is_printed_in_whole_lines_without_what_acts_on_a_terminal() {
    let fake = Fake::new();
    assert_eq!(fake.ok(&["log"]), "first line\nsecond ^[[2Jline\nthe rest\n");
    assert_eq!(fake.ok(&["dmesg", "--json"]).lines().next(), Some("{\"line\":\"first line\"}"));
    fake.state.lock().unwrap().log_first = 1000;
    assert_eq!(fake.ok(&["log"]).lines().count(), 3, "what was overwritten before the first look is not missed");
}

#[test]
fn the_log_goes_on_and_says_what_was_lost() {
    let fake = Fake::new();
    let mut child = fake.dw(&["log", "-f"]).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut seen = Vec::new();
    let mut read_until = |text: &str| {
        let mut byte = [0];
        while !String::from_utf8_lossy(&seen).contains(text) {
            assert_eq!(out.read(&mut byte).unwrap(), 1);
            seen.push(byte[0]);
        }
    };
    read_until("second ^[[2Jline\n");
    fake.state.lock().unwrap().log.extend(b" of it\n");
    read_until("the rest of it\n");
    {
        let mut state = fake.state.lock().unwrap();
        let end = state.log.len() as u64;
        state.log_first = end + 5;
        state.log = b"after the gap\n".to_vec();
    }
    read_until("after the gap\n");
    child.kill().unwrap();
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    child.wait().unwrap();
    assert_eq!(errors, "dw: 5 bytes of the log were overwritten before they were read\n");
}

fn event(sequence: u64, kind: EventKind, domain: u32, name: &str, text: &str) -> Vec<u8> {
    let mut out = vec![0; 256];
    let event = Event { sequence, time_us: 12_000_345, kind, domain, name, text };
    let length = event.encode(&mut out).unwrap();
    out.truncate(length);
    out
}

#[test]
fn events_are_one_line_each_and_gaps_are_said() {
    let fake = Fake::new();
    let mut unknown = event(5, EventKind::Created, 3, "web", "");
    unknown[32] = 99;
    let stream = [
        event(2, EventKind::Created, 3, "web", ""),
        b"garbage".to_vec(),
        event(4, EventKind::Crashed, 3, "web", "SError\x1b[2J"),
        unknown,
        event(6, EventKind::CpuOffline, u32::MAX, "", "CPU2"),
    ]
    .concat();
    let server = port(&fake.folder, "org.doorward.events", move |mut port| {
        stream.chunks(7).for_each(|piece| port.write_all(piece).unwrap());
        std::thread::sleep(Duration::from_millis(100));
    });
    let (code, out, error) = fake.run(&["events", "-n", "3"]);
    server.join().unwrap();
    assert_eq!(code, 0);
    assert_eq!(
        out,
        "\
[    12.000345] web (3): created
[    12.000345] web (3): crashed: SError^[[2J
[    12.000345] machine: cpu-offline: CPU2
"
    );
    assert_eq!(
        error,
        "dw: 1 events were lost\ndw: an event of a kind that this dw does not know\ndw: 1 events were lost\n"
    );
}

#[test]
fn events_in_json_are_one_object_a_line() {
    let fake = Fake::new();
    port(&fake.folder, "org.doorward.events", |mut port| {
        port.write_all(&event(1, EventKind::Crashed, 3, "web", "why")).unwrap();
    });
    assert_eq!(
        fake.run(&["events", "--json"]).1,
        "{\"sequence\":1,\"time_us\":12000345,\"event\":\"crashed\",\"domain\":\"web\",\"id\":3,\"text\":\"why\"}\n"
    );
}

#[test]
fn top_shows_what_happened_between_two_looks() {
    let fake = Fake::new();
    let (code, out, error) = fake.run(&["top", "-b", "-n", "1", "-d", "0.1"]);
    assert_eq!(code, 0, "{error}");
    assert_eq!(
        out,
        "\
dw top: up 0:00:07, 3 domains, 3 CPUs in service, 512 MiB free

Name                        ID State       CPU(%)    Mem VCPUs  CPU   Exits/s  Moves/s
dom0                         0 running       50.0   1024     2           2000        0
web                          3 blocked        0.0    256     2              0        0
db                           7 paused         0.0     64     2              0        0

Counter                    per second
exit irq                         2000
"
    );
    assert_eq!(fake.state.lock().unwrap().connections, 2, "the port is free between two looks");
    let vcpus = fake.ok(&["top", "-b", "-v", "-n", "2", "-d", "0.1"]);
    assert_eq!(vcpus.matches("  vCPU1").count(), 6, "{vcpus}");
    let json: serde_json::Value = serde_json::from_str(&fake.ok(&["top", "--json", "-n", "1"])).unwrap();
    assert_eq!((&json["domains"][0]["cpu_percent"], &json["counters_per_s"]["exit irq"]), (&50.0.into(), &2000.into()));
}

#[test]
fn input_from_a_file_goes_to_a_console_and_its_output_comes_back() {
    let fake = Fake::new();
    let input: Vec<u8> = image(100_000).iter().map(|byte| byte | 1).collect();
    let file = fake.write("input", &input);
    let server = port(&fake.folder, "domain.web.console", move |mut port| {
        let mut came = vec![0; input.len()];
        port.read_exact(&mut came).unwrap();
        assert_eq!(came, input);
        port.write_all(b"\x1b[2Jthanks").unwrap();
    });
    let output = fake.dw(&["console", "web"]).stdin(fs::File::open(file).unwrap()).output().unwrap();
    server.join().unwrap();
    let (code, out, error) = common::said(output);
    assert_eq!((code, out.as_str()), (0, "\x1b[2Jthanks"), "a console is passed as it is");
    assert_eq!(error, "dw: web: the console was closed: the domain has ended\n");
}

#[test]
fn the_manual_and_the_completion_name_every_verb() {
    let fake = Fake::new();
    let (manual, bash) = (fake.ok(&["man"]), fake.ok(&["completion", "bash"]));
    for verb in ["create", "vcpu-list", "console", "top", "events", "shutdown"] {
        assert!(manual.contains(&format!(".SH \"DW {}\"", verb.to_uppercase())), "{verb}");
        assert!(bash.contains(verb), "{verb}");
    }
    assert!(manual.contains(".SH \"DW PCI ASSIGN\"") && manual.contains("Exit codes"));
    assert!(!manual.contains("COMPLETION"), "hidden verbs stay hidden");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let fake = Fake::new();
    let mut child = fake.dw(&["log"]).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_body_is_what_the_crate_says() {
    // The fake is written with the same crate: this one frame is by hand.
    let bytes = [1, 1, 1, 5, 0, b'0', b'.', b'1', b'.', b'0'];
    assert_eq!(doorward_api::Chosen::read(&bytes).unwrap().release, "0.1.0");
}
