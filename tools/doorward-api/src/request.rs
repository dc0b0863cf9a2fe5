//! What can be asked.

use crate::VERSION;
use crate::frame::{Frame, Header, MAX_BODY, encode};
use crate::name::Name;
use crate::status::Status;
use crate::values::{ImageKind, OnCrash, Sbdf, Scope, Vwfi};
use crate::wire::{Body, CpuSet, List, Malformed, NoRoom, Reader, Writer, bodies};

/// The longest command line of a domain in bytes.
pub const CMDLINE_MAX: usize = 1024;

/// The most bytes of an image in one request.
pub const CHUNK_MAX: usize = MAX_BODY - 15;

bodies! {
    /// The versions that the client speaks.
    Versions {
        /// The lowest.
        min: u8,
        /// The highest.
        max: u8,
    }

    /// vCPUs of a domain.
    VcpusFrom {
        /// The domain.
        domain: u32,
        /// The first vCPU.
        from: u32,
    }

    /// A domain that is to be.
    Create<'a> {
        /// vCPUs, from 1 on.
        vcpus: u32,
        /// RAM in bytes; a multiple of 2 MiB.
        memory: u64,
        /// The scheduler's weight for each vCPU, 1 to 65535; 0: the default, 256.
        weight: u32,
        /// The most CPU time of each vCPU in percent of a CPU; 0: no limit.
        cap: u32,
        /// What happens if it crashes.
        on_crash: OnCrash,
        /// Seconds without a timer interrupt after which it counts as crashed; 0: never.
        watchdog_s: u32,
        /// Whether it has a console.
        console: bool,
        /// Whether device interrupts go to it directly, where the machine can do so.
        direct: bool,
        /// Whether it may get PCI functions that cannot be reset.
        allow_no_reset: bool,
        /// The name.
        name: Name<'a>,
        /// The kernel's command line; at most [`CMDLINE_MAX`] bytes.
        cmdline: &'a str,
        /// The PCI functions that it gets.
        functions: List<'a, Sbdf>,
    }

    /// An image is going to be sent.
    Image {
        /// The domain.
        domain: u32,
        /// What it is.
        kind: ImageKind,
        /// Its length in bytes, at least 1.
        size: u64,
    }

    /// A part of an image. Parts are sent in order, without gaps.
    ImageChunk<'a> {
        /// The domain.
        domain: u32,
        /// Of which image.
        kind: ImageKind,
        /// Where in the image it belongs, in bytes.
        offset: u64,
        /// The part; 1 to [`CHUNK_MAX`] bytes.
        bytes: &'a [u8],
    }

    /// A domain is to be started.
    Start {
        /// The domain.
        domain: u32,
        /// Whether it begins paused.
        paused: bool,
    }

    /// A setting of a vCPU, or of a domain.
    Set<'a> {
        /// The domain.
        domain: u32,
        /// The vCPU; [`crate::ALL`]: all of them, and those that come with a restart.
        vcpu: u32,
        /// What is set.
        setting: Setting<'a>,
    }

    /// How long a domain may go without a timer interrupt.
    Watchdog {
        /// The domain.
        domain: u32,
        /// Seconds; 0: for ever.
        seconds: u32,
    }

    /// A PCI function is to be given to a domain.
    Assign {
        /// The domain.
        domain: u32,
        /// The function.
        function: Sbdf,
        /// Whether it may be one that cannot be reset.
        allow_no_reset: bool,
    }

    /// Counters.
    CountersFrom {
        /// What they are about.
        scope: Scope,
        /// Which domain or CPU.
        id: u32,
        /// The first counter.
        from: u32,
    }
}

/// What `set` sets: a byte that says which (the number below), and the value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Setting<'a> {
    /// 0: the scheduler's weight, 1 to 65535 (u32).
    Weight(u32),
    /// 1: the most CPU time in percent of a CPU, 0: no limit (u32).
    Cap(u32),
    /// 2: the CPUs on which it may run ([`CpuSet`]).
    Affinity(CpuSet),
    /// 3: what WFI and WFE do.
    Vwfi(Vwfi),
    /// 4: whether device interrupts go to it directly.
    Direct(bool),
    /// 5: what happens if the domain crashes; for all vCPUs only.
    OnCrash(OnCrash),
    /// 6: the name; for all vCPUs only.
    Name(Name<'a>),
}

impl<'a> Body<'a> for Setting<'a> {
    fn put(&self, out: &mut Writer<'_>) -> Result<(), NoRoom> {
        let number: u8 = match self {
            Setting::Weight(_) => 0,
            Setting::Cap(_) => 1,
            Setting::Affinity(_) => 2,
            Setting::Vwfi(_) => 3,
            Setting::Direct(_) => 4,
            Setting::OnCrash(_) => 5,
            Setting::Name(_) => 6,
        };
        number.put(out)?;
        match self {
            Setting::Weight(value) | Setting::Cap(value) => value.put(out),
            Setting::Affinity(value) => value.put(out),
            Setting::Vwfi(value) => value.put(out),
            Setting::Direct(value) => value.put(out),
            Setting::OnCrash(value) => value.put(out),
            Setting::Name(value) => value.put(out),
        }
    }

    fn take(from: &mut Reader<'a>) -> Result<Setting<'a>, Malformed> {
        match u8::take(from)? {
            0 => u32::take(from).map(Setting::Weight),
            1 => u32::take(from).map(Setting::Cap),
            2 => CpuSet::take(from).map(Setting::Affinity),
            3 => Vwfi::take(from).map(Setting::Vwfi),
            4 => bool::take(from).map(Setting::Direct),
            5 => OnCrash::take(from).map(Setting::OnCrash),
            6 => Name::take(from).map(Setting::Name),
            _ => Err(Malformed),
        }
    }
}

macro_rules! requests {
    ($($(#[$doc:meta])* $number:literal $name:ident $(($body:ty))?, $label:literal;)*) => {
        /// The kind of a request, as in the header of the request and of its answer.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Kind {
            $($(#[$doc])* $name = $number,)*
        }

        impl Kind {
            /// All of them.
            pub const EVERY: &'static [Kind] = &[$(Kind::$name,)*];

            /// The kind with this number, if there is one.
            #[must_use]
            pub const fn from_number(number: u16) -> Option<Kind> {
                match number {
                    $($number => Some(Kind::$name),)*
                    _ => None,
                }
            }

            /// Its name in messages.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self {
                    $(Kind::$name => $label,)*
                }
            }
        }

        /// What is asked. A plain `u32` is the id of a domain, or what the description says.
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub enum Request<'a> {
            $($(#[$doc])* $name $(($body))?,)*
        }

        impl<'a> Request<'a> {
            /// Its kind.
            #[must_use]
            pub const fn kind(&self) -> Kind {
                match self {
                    $(requests!(@pattern $name $(, _ignored $body)?) => Kind::$name,)*
                }
            }

            fn read(kind: Kind, body: &'a [u8]) -> Result<Request<'a>, Malformed> {
                match kind {
                    $(Kind::$name => requests!(@read body $name $($body)?),)*
                }
            }

            fn encode_as(&self, header: Header, out: &mut [u8]) -> Result<usize, NoRoom> {
                match self {
                    $(requests!(@pattern $name $(, body $body)?) => requests!(@encode header out $(body $body)?),)*
                }
            }
        }
    };
    (@pattern $name:ident) => { Request::$name };
    (@pattern $name:ident, $bound:ident $body:ty) => { Request::$name($bound) };
    (@read $bytes:ident $name:ident) => { crate::wire::Empty::read_all($bytes).map(|_| Request::$name) };
    (@read $bytes:ident $name:ident $body:ty) => { <$body>::read_all($bytes).map(Request::$name) };
    (@encode $header:ident $out:ident) => { encode($header, &crate::wire::Empty, $out) };
    (@encode $header:ident $out:ident $bound:ident $body:ty) => { encode($header, $bound, $out) };
}

requests! {
    /// Which versions are spoken. Answered by [`crate::Chosen`], whatever the version in the header is.
    1 Version(Versions), "version";
    /// The machine. Answered by [`crate::Info`].
    2 Info, "info";
    /// The domain with the lowest id that is not below this. Answered by [`crate::Domain`], or `End`.
    3 List(u32), "list";
    /// The domain with this name. Answered by [`crate::Domain`].
    4 Lookup(Name<'a>), "lookup";
    /// vCPUs of a domain. Answered by [`crate::VcpuPage`].
    5 Vcpus(VcpusFrom), "vcpus";

    /// A domain is to be. Answered by [`crate::Created`]. It is [`crate::DomainState::Building`] from now on, and is gone
    /// again if the client closes the port before it is built.
    16 Create(Create<'a>), "create";
    /// An image is going to be sent.
    17 Image(Image), "image";
    /// A part of it.
    18 ImageChunk(ImageChunk<'a>), "image-chunk";
    /// All images are there: build the domain. Answered by [`crate::Built`]. If it fails, the domain is gone.
    19 Build(u32), "build";
    /// Forget a domain that is not built.
    20 Abort(u32), "abort";

    /// Start a domain that is built.
    32 Start(Start), "start";
    /// No vCPU of the domain runs from now on. Time goes on for it.
    33 Pause(u32), "pause";
    /// End a pause.
    34 Unpause(u32), "unpause";
    /// Ask the domain to power itself off.
    35 Shutdown(u32), "shutdown";
    /// Make the domain anew from its images.
    36 Reset(u32), "reset";
    /// Take the domain down. Answered when it is gone and its memory is free.
    37 Destroy(u32), "destroy";
    /// Change a setting.
    38 Set(Set<'a>), "set";
    /// Set the watchdog.
    39 Watchdog(Watchdog), "watchdog";

    /// PCI functions, from this index on. Answered by [`crate::PciPage`].
    48 PciList(u32), "pci-list";
    /// Give a function to a domain. dom0's driver has to be unbound before.
    49 PciAssign(Assign), "pci-assign";
    /// Give a function back to dom0.
    50 PciRelease(Sbdf), "pci-release";

    /// Physical CPUs, from this number on. Answered by [`crate::CpuPage`].
    64 Cpus(u32), "cpus";
    /// Take a physical CPU out of service.
    65 CpuOffline(u32), "cpu-offline";
    /// Take it back.
    66 CpuOnline(u32), "cpu-online";

    /// The log, from this position on. Answered by [`crate::LogChunk`].
    80 Log(u64), "log";
    /// Counters. Answered by [`crate::CounterPage`].
    81 Counters(CountersFrom), "counters";
}

impl<'a> Request<'a> {
    /// Writes the request as a frame and returns its length in bytes.
    ///
    /// # Errors
    ///
    /// The buffer is too short, or a text or list is too long for a body.
    pub fn encode(&self, tag: u32, out: &mut [u8]) -> Result<usize, NoRoom> {
        self.encode_as(Header { version: VERSION, kind: self.kind() as u16, status: 0, tag, length: 0 }, out)
    }

    /// Reads the request of a frame.
    ///
    /// # Errors
    ///
    /// The status with which to answer: `UnknownRequest`, `UnsupportedVersion` or `Malformed`.
    pub fn decode(frame: &Frame<'a>) -> Result<Request<'a>, Status> {
        let kind = Kind::from_number(frame.header.kind);
        if frame.header.version != VERSION && kind != Some(Kind::Version) {
            return Err(Status::UnsupportedVersion);
        }
        let request = Request::read(kind.ok_or(Status::UnknownRequest)?, frame.body).map_err(|_| Status::Malformed)?;
        if frame.header.status == 0 && request.fits() { Ok(request) } else { Err(Status::Malformed) }
    }

    /// Whether what has a fixed limit keeps it.
    fn fits(&self) -> bool {
        match self {
            Request::Create(create) => create.cmdline.len() <= CMDLINE_MAX && !create.cmdline.contains('\0'),
            Request::Image(image) => image.size > 0,
            Request::ImageChunk(chunk) => !chunk.bytes.is_empty(),
            _ => true,
        }
    }
}
