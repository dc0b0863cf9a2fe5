//! Drafts: domUs that are created at run time, while their images are sent.
//!
//! A draft has a number and a name in the table of domains, and the RAM that its domain is going to have, so that a client
//! does not send images in vain. Each image is kept in RAM of its own, from the same pool, as long as the domain exists: a
//! restart needs it. It may be as large as the domain's RAM, which it has to fit into. When all are complete, the draft
//! becomes an [`Assembly`]. One that is given up leaves RAM behind, which is zeroed before others get it.

use super::BuildError;
use super::assembly::Assembly;
use super::domu::{GivenDevices, Planned, Refused, Wanted, plan, take_ram};
use super::image::{HEADER_LEN, Image};
use super::layout::domu::RAM;
use crate::domain::images::{From, Kept, Rams};
use crate::domain::table::{Domains, NotReserved};
use crate::host::Host;
use crate::ids::{DomId, DomainName, Ipa, Pa};
use crate::mm::guest_ram::GuestRam;
use alloc::boxed::Box;
use alloc::string::String;
use doorward_api::{Create, ImageKind, Status};

/// A domU whose images are sent.
pub struct Draft {
    id: DomId,
    wanted: Wanted,
    ram: GuestRam,
    kernel: Option<Upload>,
    ramdisk: Option<Upload>,
}

/// An image that is sent.
struct Upload {
    kept: Kept,
    /// How many bytes have come.
    came: u64,
}

impl Upload {
    fn is_complete(&self) -> bool {
        self.came == self.kept.size
    }
}

/// What is given up.
pub struct Leftover {
    /// The number of the domain that was to be.
    pub id: DomId,
    /// Its RAM.
    pub rams: Rams,
}

fn refused(status: Status, text: &str) -> Refused {
    Refused { status, error: BuildError::new(text) }
}

impl Draft {
    /// Reserves number, name and RAM for a domain.
    ///
    /// # Errors
    ///
    /// [`Refused`]; nothing is reserved.
    pub fn new(domains: &Domains, create: &Create<'_>) -> Result<Draft, Refused> {
        if !create.functions.is_empty() {
            return Err(refused(Status::NotSupported, "PCI functions cannot be given to domains at run time"));
        }
        if create.watchdog_s != 0 {
            return Err(refused(Status::NotSupported, "there are no watchdogs"));
        }
        if create.weight > 0xffff {
            return Err(refused(Status::InvalidValue, "the weight is not 1 to 65535"));
        }
        let mut wanted = Wanted {
            name: DomainName::from(create.name.as_str()).unwrap_or_default(),
            vcpus: usize::try_from(create.vcpus).unwrap_or(usize::MAX),
            memory: create.memory,
            console: create.console,
            weight: Some(create.weight).filter(|&weight| weight > 0),
            cap: Some(create.cap).filter(|&cap| cap > 0),
            on_crash: create.on_crash,
            bootargs: String::from(create.cmdline),
        };
        wanted.memory = wanted.check()?;
        let id = domains.reserve(&wanted.name).map_err(|error| {
            let status = match error {
                NotReserved::NameTaken(_) => Status::NameTaken,
                NotReserved::BadName(_) => Status::InvalidValue,
                NotReserved::TooMany => Status::TooManyDomains,
            };
            Refused { status, error: BuildError::because("name", error) }
        })?;
        match take_ram(domains.host, RAM, wanted.memory) {
            Err(error) => {
                domains.give_back(id);
                Err(Refused { status: Status::NoMemory, error })
            }
            Ok(ram) => Ok(Draft { id, wanted, ram, kernel: None, ramdisk: None }),
        }
    }

    /// The number that the domain is going to have.
    #[must_use]
    pub fn id(&self) -> DomId {
        self.id
    }

    /// What the domain is going to be.
    #[must_use]
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// The RAM in which its images are kept, in bytes.
    #[must_use]
    pub fn images_size(&self) -> u64 {
        let uploads = self.kernel.iter().chain(&self.ramdisk);
        uploads.map(|upload| upload.kept.ram.size()).sum()
    }

    fn upload(&mut self, kind: ImageKind) -> &mut Option<Upload> {
        match kind {
            ImageKind::Kernel => &mut self.kernel,
            ImageKind::Ramdisk => &mut self.ramdisk,
        }
    }

    /// Takes RAM for an image of `size` bytes, which comes next.
    ///
    /// # Errors
    ///
    /// [`Refused`]; nothing has changed.
    pub fn expect(&mut self, host: &Host, kind: ImageKind, size: u64) -> Result<(), Refused> {
        let memory = self.wanted.memory;
        let upload = self.upload(kind);
        if upload.is_some() {
            return Err(refused(Status::WrongState, "this image is being sent already"));
        }
        if size > memory {
            return Err(refused(Status::TooLarge, "the image is larger than the domain's memory"));
        }
        let ram = take_ram(host, Pa(0), size).map_err(|error| Refused { status: Status::NoMemory, error })?;
        *upload = Some(Upload { kept: Kept { ram, size }, came: 0 });
        Ok(())
    }

    /// Takes the next bytes of an image.
    ///
    /// # Errors
    ///
    /// They are not the next ones.
    pub fn append(&mut self, kind: ImageKind, offset: u64, bytes: &[u8]) -> Result<(), Status> {
        let Some(upload) = self.upload(kind) else { return Err(Status::OutOfOrder) };
        let end = offset.checked_add(bytes.len() as u64).filter(|&end| end <= upload.kept.size);
        let end = end.filter(|_| offset == upload.came).ok_or(Status::OutOfOrder)?;
        upload.kept.ram.fill(Ipa(offset), bytes).map_err(|_| Status::Internal)?;
        upload.came = end;
        Ok(())
    }

    /// All images have been sent: begins to build the domain.
    ///
    /// # Errors
    ///
    /// [`Refused`], and what is left of the draft.
    pub fn build(self, host: &Host) -> Result<Box<Assembly>, Box<(Refused, Leftover)>> {
        match self.plan(host) {
            Err(refused) => Err(Box::new((refused, self.give_up()))),
            Ok(planned) => {
                let Draft { id, ram, kernel, ramdisk, .. } = self;
                let kept = |upload: Upload| From::Kept(upload.kept);
                match kernel {
                    Some(kernel) => {
                        let spec = planned.with(ram, kept(kernel), ramdisk.map(kept));
                        Ok(Box::new(Assembly::new(spec)))
                    }
                    None => {
                        let rams = core::iter::once(ram).collect();
                        Err(Box::new((refused(Status::ImageIncomplete, "there is no kernel"), Leftover { id, rams })))
                    }
                }
            }
        }
    }

    fn plan(&self, host: &Host) -> Result<Planned, Refused> {
        let Some(kernel) = &self.kernel else { return Err(refused(Status::ImageIncomplete, "there is no kernel")) };
        let incomplete = |upload: &&Upload| !upload.is_complete();
        if [Some(kernel), self.ramdisk.as_ref()].iter().flatten().any(incomplete) {
            return Err(refused(Status::ImageIncomplete, "a part of an image has not come"));
        }
        let bad = |error: &dyn core::fmt::Display| Refused {
            status: Status::BadKernel,
            error: BuildError::because("kernel", error),
        };
        let mut header = [0; HEADER_LEN];
        let length = header.len().min(usize::try_from(kernel.kept.size).unwrap_or(usize::MAX));
        let head = header.get_mut(..length).unwrap_or_default();
        kernel.kept.ram.read(Ipa(0), head).map_err(|_| refused(Status::Internal, "the kernel cannot be read"))?;
        let image = Image::parse(head).map_err(|error| bad(&error))?;
        let ramdisk = self.ramdisk.as_ref().map(|upload| upload.kept.size);
        plan(host, self.id, &self.wanted, &image, kernel.kept.size, ramdisk, GivenDevices::default())
    }

    /// Gives the draft up. What it leaves has to be zeroed.
    #[must_use]
    pub fn give_up(self) -> Leftover {
        let uploads = [self.kernel, self.ramdisk].into_iter().flatten().map(|upload| upload.kept.ram);
        Leftover { id: self.id, rams: core::iter::once(self.ram).chain(uploads).collect() }
    }
}
