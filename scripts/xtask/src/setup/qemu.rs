//! QEMU 10.0 or later: the first whose `virt` machine has GICv4 and both stages of the SMMU as this project needs them.

use std::process::Command;

use super::apt;
use crate::fail::{Failure, Outcome};
use crate::sh;

const PROGRAM: &str = "qemu-system-aarch64";
const PACKAGE: &str = "qemu-system-arm";
const OLDEST: (u32, u32) = (10, 0);
const BACKPORTS: &str = "/etc/apt/sources.list.d/doorward-backports.sources";

/// Installs QEMU if it is missing or too old.
pub fn ensure() -> Outcome {
    let found = installed();
    if found.is_some_and(|version| version >= OLDEST) {
        return Ok(());
    }
    match found {
        Some((major, minor)) => sh::say(format_args!("QEMU {major}.{minor} is too old; 10.0 or later is needed")),
        None => sh::say("QEMU for AArch64 is not installed"),
    }
    if !sh::has("apt-get") {
        return Err(Failure::new(format!(
            "this system has no apt: install QEMU 10.0 or later with {PROGRAM} by its package manager, then run setup \
             again (apt and dpkg-deb are needed, too, as a kernel, busybox and fio for arm64 come from Debian)"
        )));
    }
    sh::say("reading the host's package lists");
    apt::host_get("apt-get update", &["update"])?;
    if on_bookworm() {
        backports()?;
        sh::say(format_args!("installing {PACKAGE} from bookworm-backports"));
        let words = ["install", "--no-install-recommends", "-t", "bookworm-backports", PACKAGE];
        apt::host_get(&format!("installing {PACKAGE}"), &words)?;
    } else {
        let policy = sh::quiet(Command::new("apt-cache").args(["policy", PACKAGE]))?;
        let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:")).unwrap_or("none").trim();
        if parse(candidate.rsplit(':').next().unwrap_or_default()).is_none_or(|version| version < OLDEST) {
            return Err(Failure::new(format!(
                "this release has {PACKAGE} {candidate}, but 10.0 or later is needed: install a newer {PROGRAM}, then run setup again"
            )));
        }
        sh::say(format_args!("installing {PACKAGE} {candidate}"));
        apt::host_get(&format!("installing {PACKAGE}"), &["install", "--no-install-recommends", PACKAGE])?;
    }
    match installed() {
        Some(version) if version >= OLDEST => Ok(()),
        _ => Err(Failure::new(format!("{PACKAGE} was installed, but {PROGRAM} on the PATH is older than 10.0"))),
    }
}

/// Whether the host is a Debian bookworm.
pub fn on_bookworm() -> bool {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    release.lines().any(|line| line == "VERSION_CODENAME=bookworm")
}

/// Adds bookworm-backports to the host's apt if it is missing.
pub fn backports() -> Outcome {
    let policy = sh::quiet(Command::new("apt-cache").arg("policy"))?;
    if policy.contains("bookworm-backports") {
        return Ok(());
    }
    sh::say(format_args!("adding bookworm-backports ({BACKPORTS})"));
    let mirror = apt::mirror()?;
    let text = format!(
        "Types: deb\nURIs: {mirror}\nSuites: bookworm-backports\nComponents: main\n\
         Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    );
    apt::write_as_root(BACKPORTS, &text)?;
    apt::host_get("apt-get update", &["update"])
}

/// The version of the program on the PATH.
fn installed() -> Option<(u32, u32)> {
    let output = Command::new(PROGRAM).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    parse(text.split("version ").nth(1)?)
}

/// The first two numbers of `10.0.2 (Debian …)`.
pub fn parse(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_qemu_and_apt_are_parsed() {
        assert_eq!(parse("10.0.2 (Debian 1:10.0.2+ds-2)"), Some((10, 0)));
        assert_eq!(parse("7.2+dfsg-7+deb12u18"), Some((7, 2)));
        assert_eq!(parse("(none)"), None);
    }
}
