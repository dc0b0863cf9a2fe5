//! Two uses of apt: the host's, for programs that run on the host, and one with a state of its own, for arm64 packages and for
//! source packages.
//!
//! The latter has its own package lists, an empty package status and one source. It downloads and verifies packages but never
//! installs them, so neither root nor `dpkg --add-architecture` is needed. Metadata is checked against Debian's archive keyring.
//! The mirror is the one that the host uses, or `DOORWARD_DEBIAN_MIRROR`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fail::{Doing, Failure, Outcome};
use crate::{paths, sh};

/// The Debian release whose kernel and programs run in the guest.
const GUEST_RELEASE: &str = "bookworm";

/// Debian's archive keys, installed by the package `debian-archive-keyring`.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A file in an unpacked package with the name of the .deb file.
pub const ORIGIN: &str = ".deb";

/// A command that runs `program` as root, by sudo if necessary.
pub fn as_root(program: &str) -> Outcome<Command> {
    let id = sh::quiet(Command::new("id").arg("-u"))?;
    if id.trim() == "0" {
        return Ok(Command::new(program));
    }
    if !sh::has("sudo") {
        return Err(Failure::new(format!("`{program}` needs root, and there is no sudo: run setup once as root")));
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    Ok(command)
}

/// Runs the host's `apt-get` with `words`, with retries. Waits while another process holds apt's lock.
pub fn host_get(what: &str, words: &[&str]) -> Outcome {
    as_root("apt-get")?;
    sh::retried(what, || {
        let mut command = as_root("apt-get").unwrap_or_else(|_| Command::new("apt-get"));
        command.args(["-o", "DPkg::Lock::Timeout=120", "-q", "-y"]).args(words);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    })?;
    Ok(())
}

/// Writes a file as root.
pub fn write_as_root(path: &str, text: &str) -> Outcome {
    let source = paths::cache().join("root-file.tmp");
    std::fs::write(&source, text).doing(format_args!("writing {}", source.display()))?;
    sh::quiet(as_root("install")?.args(["-m", "644"]).arg(&source).arg(path))?;
    let _ = std::fs::remove_file(&source);
    Ok(())
}

/// The Debian mirror that this host uses.
pub fn mirror() -> Outcome<String> {
    if let Ok(mirror) = std::env::var("DOORWARD_DEBIAN_MIRROR") {
        return Ok(mirror.trim_end_matches('/').to_owned());
    }
    if let Some(mirror) = known_mirror()? {
        return Ok(mirror);
    }
    sh::say("reading the host's package lists");
    host_get("apt-get update", &["update"])?;
    known_mirror()?.ok_or_else(|| {
        Failure::new("this host's apt knows no Debian mirror: name one in DOORWARD_DEBIAN_MIRROR and run setup again")
    })
}

fn known_mirror() -> Outcome<Option<String>> {
    let format = "$(ORIGIN)|$(LABEL)|$(REPO_URI)";
    let targets = sh::quiet(Command::new("apt-get").args(["indextargets", "--format", format]))?;
    let mirror = targets.lines().find_map(|line| line.strip_prefix("Debian|Debian|"));
    Ok(mirror.map(|uri| uri.trim_end_matches('/').to_owned()))
}

/// One stanza of a package list.
pub struct Package {
    /// File name and version, to tell one download from another.
    pub version: String,
    /// The names it depends on, first alternatives only.
    pub depends: Vec<String>,
}

/// An apt state of its own.
pub struct Archive {
    dir: PathBuf,
}

impl Archive {
    /// That of arm64 packages, with updated package lists.
    pub fn arm64() -> Outcome<Self> {
        let lists = format!("Debian {GUEST_RELEASE}'s arm64 package lists");
        let source = format!("Types: deb\nArchitectures: arm64\nSuites: {GUEST_RELEASE}\n");
        Self::open("apt", &source, &lists)
    }

    /// That of the newest arm64 packages, with updated package lists.
    pub fn newest() -> Outcome<Self> {
        Self::open("apt-sid", "Types: deb\nArchitectures: arm64\nSuites: sid\n", "Debian sid's arm64 package lists")
    }

    /// That of the source packages of `release`, with updated package lists.
    pub fn sources(release: &str) -> Outcome<Self> {
        let lists = format!("Debian {release}'s source package lists");
        Self::open("apt-sources", &format!("Types: deb-src\nSuites: {release}\n"), &lists)
    }

    /// Sets up the state in the folder `name` of the cache with one `source`, and updates its `lists`.
    fn open(name: &str, source: &str, lists: &str) -> Outcome<Self> {
        if !Path::new(KEYRING).is_file() {
            sh::say("installing debian-archive-keyring");
            host_get(
                "installing debian-archive-keyring",
                &["install", "--no-install-recommends", "debian-archive-keyring"],
            )?;
        }
        let archive = Self { dir: paths::cache().join(name) };
        for folder in ["state/lists/partial", "cache/archives/partial", "sources", "download"] {
            let folder = archive.dir.join(folder);
            std::fs::create_dir_all(&folder).doing(format_args!("creating {}", folder.display()))?;
        }
        let source = format!("{source}URIs: {}\nComponents: main\nSigned-By: {KEYRING}\n", mirror()?);
        std::fs::write(archive.dir.join("sources/debian.sources"), source).doing("writing the package source")?;
        std::fs::write(archive.dir.join("state/status"), "").doing("writing an empty package status")?;
        sh::say(format_args!("reading {lists}"));
        sh::retried(&format!("reading {lists}"), || archive.command("apt-get", &["update"]))?;
        Ok(archive)
    }

    fn command(&self, program: &str, words: &[&str]) -> Command {
        let mut command = Command::new(program);
        let options = [
            "APT::Architecture=arm64".to_owned(),
            "APT::Architectures=arm64".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Dir::Etc::sourcelist=/dev/null".to_owned(),
            format!("Dir::Etc::sourceparts={}", self.dir.join("sources").display()),
            format!("Dir::State={}", self.dir.join("state").display()),
            format!("Dir::State::status={}", self.dir.join("state/status").display()),
            format!("Dir::Cache={}", self.dir.join("cache").display()),
        ];
        for option in &options {
            command.args(["-o", option]);
        }
        command.args(words).current_dir(self.dir.join("download"));
        command
    }

    /// The entry of the package `name`.
    pub fn show(&self, name: &str) -> Outcome<Package> {
        let text = sh::quiet(&mut self.command("apt-cache", &["show", "--no-all-versions", name]))?;
        Ok(parse_stanza(&text))
    }

    /// The versions that there are of the source package `name`.
    pub fn source_versions(&self, name: &str) -> Outcome<Vec<String>> {
        let text = sh::quiet(&mut self.command("apt-cache", &["showsrc", "--only-source", name]))?;
        Ok(versions(&text))
    }

    /// Downloads the files of a source package to `into`.
    pub fn fetch_source(&self, name: &str, version: &str, into: &Path) -> Outcome {
        let download = self.dir.join("download");
        let _ = std::fs::remove_dir_all(&download);
        std::fs::create_dir_all(&download).doing(format_args!("creating {}", download.display()))?;
        let what = format!("{name}={version}");
        sh::retried(&format!("downloading the source of {what}"), || {
            self.command("apt-get", &["-q", "source", "--only-source", "--download-only", &what])
        })?;
        let _ = std::fs::remove_dir_all(into);
        let parent = into.parent().unwrap_or(into);
        std::fs::create_dir_all(parent).doing(format_args!("creating {}", parent.display()))?;
        std::fs::rename(&download, into).doing(format_args!("placing {}", into.display()))
    }

    /// Downloads `names` and unpacks each into a folder of its own under `into`.
    pub fn fetch(&self, names: &[String], into: &Path) -> Outcome {
        let missing: Vec<&str> = names.iter().map(String::as_str).filter(|name| !into.join(name).is_dir()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        sh::say(format_args!("downloading {}", missing.join(" ")));
        let words = [&["-q", "download"][..], &missing[..]].concat();
        sh::retried(&format!("downloading {}", missing.join(" ")), || self.command("apt-get", &words))?;
        let files: Vec<PathBuf> = std::fs::read_dir(self.dir.join("download"))
            .doing("listing what was downloaded")?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .collect();
        for name in missing {
            let prefix = format!("{name}_");
            let file =
                files.iter().find(|file| file.file_name().is_some_and(|f| f.to_string_lossy().starts_with(&prefix)));
            let file = file.ok_or_else(|| Failure::new(format!("apt-get download left no file for {name}")))?;
            unpack(file, &into.join(name))?;
            let _ = std::fs::remove_file(file);
        }
        Ok(())
    }
}

/// The values of the field `Version` in the stanzas of `apt-cache showsrc`.
fn versions(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.strip_prefix("Version: ")).map(str::to_owned).collect()
}

/// Unpacks a package into a temporary folder and renames that, so that a folder that exists is complete.
fn unpack(deb: &Path, folder: &Path) -> Outcome {
    let partial = folder.with_extension("partial");
    let _ = std::fs::remove_dir_all(&partial);
    std::fs::create_dir_all(&partial).doing(format_args!("creating {}", partial.display()))?;
    sh::quiet(Command::new("dpkg-deb").arg("-x").arg(deb).arg(&partial))?;
    let origin = deb.file_name().unwrap_or_default().to_string_lossy().into_owned();
    std::fs::write(partial.join(ORIGIN), origin).doing(format_args!("writing in {}", partial.display()))?;
    std::fs::rename(&partial, folder).doing(format_args!("placing {}", folder.display()))
}

fn parse_stanza(text: &str) -> Package {
    let stanza = text.split("\n\n").next().unwrap_or_default();
    let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let depends = [field("Depends:"), field("Pre-Depends:")]
        .iter()
        .flat_map(|list| list.split(','))
        .filter_map(|word| word.split_whitespace().next())
        .map(|name| name.split(':').next().unwrap_or(name).to_owned())
        .collect();
    Package { version: field("Version:").to_owned(), depends }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_lose_their_versions_and_alternatives() {
        let package = parse_stanza(
            "Package: fio\nVersion: 3.33-3\nDepends: libaio1 (>= 0.3), python3:any | x, libc6\n\nPackage: other\n",
        );
        assert_eq!(package.version, "3.33-3");
        assert_eq!(package.depends, ["libaio1", "python3", "libc6"]);
    }
}
