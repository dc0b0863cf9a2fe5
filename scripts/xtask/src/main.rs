//! `cargo xtask`: everything a person does with this tree besides editing it.
//!
//! One verb per module: [`setup`] gets what is missing, [`image`] builds and packs, [`run`] boots, [`test`] runs every test,
//! [`symbolize`] reads a panic log, [`bench`] measures, [`mutants`] tests the tests. [`qemu`] is the machine they share and [`guest`] the Linux that runs in
//! it. `cargo xtask help` prints the flags; other scripts rely on them and on the exit codes.

mod args;
mod bench;
mod fail;
mod paths;
mod sh;

mod cost;
mod count;
mod domu;
mod image;
mod medium;
mod mutants;
mod order;
mod pe;
mod qemu;
mod qmp;
mod qtest;
mod run;
mod session;
mod setup;
mod symbolize;
mod test;

use std::process::ExitCode;

use args::Args;
use fail::{Failure, Outcome};

const HELP: &str = "\
usage: cargo xtask VERB [FLAGS]

  setup                     gets what is missing: targets, QEMU, a Linux to run, a disk; each step is said
  build                     target/doorward.img (raw arm64 Image) and target/doorward.elf
      [--release|--debug]   optimised (the default), or with debug assertions
  image --board B           a disk that boots on a board by UEFI: see boards/B/README.md
      [--out F]             where it goes; target/B.raw without it
      [--kernel F] [--initrd F|none] [--append WORDS] [--hv WORDS]    as for `run`
      [--root F]            the content of the root partition, a raw file system
      [--release|--debug]
  run                       boots dom0 under the hypervisor, on this terminal
      [--kernel F]          dom0's kernel, a raw arm64 Image; `none` for no kernel module
      [--initrd F]          dom0's initramfs, or `none`
      [--append WORDS]      more words for dom0's command line (dw.test=NAME runs tests/linux/cases/NAME, then powers off)
      [--hv WORDS]          the hypervisor's command line
      [--disk F]            a raw image for the NVMe disk, which the guest may change; `null` for one without content,
                            `none` for none. The default is the disk of known content, and writes to it are dropped
      [--smp N] [--mem SIZE] [--cpu MODEL]
      [--domu KERNEL[,initrd=F][,cpus=N][,mem=SIZE][,weight=N][,cap=N][,append=WORDS]]
                            a domain beside dom0; may be given several times
      [--timeout SECONDS]   a batch run: exit code 0 when the machine powered off, 124 on time-out, 1 when the hypervisor
                            panicked or refused to start. Also without this flag when standard input is no terminal
      [--log F]             the console goes to F, too (batch)
      [--qemu \"EXTRA ARGS\"] more flags for QEMU
      [--count-exits F]     a batch run on a deterministic clock: counts what reaches EL2 while dw.test=count does its I/O
                            (dw.arg=BS,IODEPTH,JOBS) and writes the table to F, QEMU's log to F.raw
      [--uefi fdt|acpi]     by UEFI firmware, from a second NVMe disk as `image --board qemu-uefi` makes it; the firmware
                            describes the machine by a device tree, or by ACPI tables
      [--bare]              the same Linux without the hypervisor, to compare with
      [--release|--debug] [--gdb] [--dry-run]
  test [FILTER]             all tests, or those whose name contains FILTER; logs of each are kept in target/tests/
      [--host|--qemu]       only those that boot nothing, or only those that boot a machine
      [--bare]              the guest's part of the QEMU tests without the hypervisor, to tell its faults from theirs
      [--list]              the names of those that boot a machine
      [--long]              tests that can go on do: ten minutes of moved vCPUs instead of one, ten million acts of
                            nonsense instead of one
      [--steps N]           how many random steps the GIC driver's property tests take (100,000)
  symbolize F [--elf F]     a panic log with functions and lines beside its addresses
  bench boot [--runs N]     time to dom0's init against the same Linux without the hypervisor, as a ratio
  bench gic                 instructions for the GIC driver's verbs with 1, 64 and 16384 vPEs, counted by valgrind on this
                            machine; fails if they grow with the number
  bench cost [--functions]  instructions in EL2 for waking a vCPU, switching between two and moving a vPE, with 1 to 64 vCPUs;
                            and in which functions they are
  bench sched [--runs N]    exceptions to EL2 for each I/O, and how long reads take next to a Linux without the hypervisor, for
      [--counts|--latency]  each of sched=, vwfi= and direct=, as the table in boards/qemu-virt; only the one or the other
  fuzz [FILTER]             the fuzz targets, or those whose name contains FILTER; installs Rust's nightly toolchain and
                            cargo-fuzz if they are missing, without which `test` skips them
      [--seconds N]         for each (60)
  mutants                   whether the tests of src/gic/its and src/gic/v4 notice changes of that code: fails if less than
                            90 % of them, or if one that they do not has no reason in tests/mutants.md. Installs
                            cargo-mutants. Takes an hour; the last line is the score
      [--missed|--rest|--file F]   tries again what was missed, tries what was not tried yet, or one file
  lint                      formatting, lints and the imports: what `test --host` checks first
      [--imports]           only the imports: which rooms of src import rooms above them, and which files form circles
  help                      this

The cache is .cache/ in this checkout, or the folder that DOORWARD_CACHE names.
";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let verb = words.next().unwrap_or_else(|| "help".into());
    match dispatch(&verb, Args::new(words.collect())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.text.is_empty() {
                eprintln!("xtask: {}", failure.text);
            }
            ExitCode::from(failure.code)
        }
    }
}

fn dispatch(verb: &str, args: Args) -> Outcome {
    match verb {
        "setup" => {
            args.finish("setup")?;
            setup::everything()
        }
        "build" => image::verb(args),
        "image" => medium::verb(args),
        "run" => run::verb(args),
        "test" => test::verb(args),
        "symbolize" => symbolize::verb(args),
        "bench" => bench::verb(args),
        "fuzz" => test::fuzz(args),
        "mutants" => mutants::verb(args),
        "lint" => test::lint(args),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        _ => Err(Failure::usage(format!("no verb `{verb}`\n\n{HELP}"))),
    }
}
