//! How a request ended.

use core::fmt;

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        /// How a request ended. Unless it is [`Status::Ok`], nothing has changed, but where the description says so.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Status {
            $($(#[$doc])* $name = $value,)*
        }

        impl Status {
            /// All of them.
            pub const EVERY: &'static [Status] = &[$(Status::$name,)*];

            /// The status with this number, if there is one.
            #[must_use]
            pub const fn from_number(number: u16) -> Option<Status> {
                match number {
                    $($value => Some(Status::$name),)*
                    _ => None,
                }
            }

            /// What it means, without a full stop.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Status::$name => $text,)*
                }
            }
        }
    };
}

statuses! {
    /// It was done. The body is that of the request's kind.
    Ok = 0, "done";
    /// There is nothing from the place on that was asked for: the end of a list. The body is empty.
    End = 1, "there is no more";
    /// The kind of request is not known.
    UnknownRequest = 2, "the hypervisor does not know this request";
    /// The body is not one of this kind.
    Malformed = 3, "the hypervisor could not read the request";
    /// The version in the header is not spoken. The body is that of an answer to `version`.
    UnsupportedVersion = 4, "the hypervisor speaks another version of the protocol";
    /// The request is known, but not in this hypervisor, this machine or this configuration.
    NotSupported = 5, "this is not supported here";
    /// Another request is being worked on. It can be repeated.
    Busy = 6, "the hypervisor is busy with another request";
    /// A failure that should not occur; the hypervisor's log says more.
    Internal = 7, "the hypervisor failed; its log says more";
    /// No domain has this id or name.
    NoSuchDomain = 16, "there is no such domain";
    /// A domain has this name already.
    NameTaken = 17, "another domain has this name";
    /// The domain is not in a state in which this can be done.
    WrongState = 18, "the domain's state does not allow this";
    /// This cannot be done to dom0.
    NotToDom0 = 19, "this cannot be done to dom0";
    /// The domain ended before the request was done.
    DomainEnded = 20, "the domain ended meanwhile";
    /// There is no vCPU with this number.
    NoSuchVcpu = 21, "the domain has no such vCPU";
    /// A number is out of its range; the text says which.
    InvalidValue = 22, "a value is out of its range";
    /// The domain did not do what it was asked in time.
    NoReaction = 23, "the domain did not react";
    /// Not enough memory is free for the domain's RAM and images.
    NoMemory = 32, "there is not enough free memory";
    /// The hypervisor's own memory does not suffice.
    NoHeap = 33, "the hypervisor's own memory does not suffice";
    /// There are as many domains as there can be.
    TooManyDomains = 34, "there are as many domains as there can be";
    /// There is no CPU for a vCPU (`sched=null`), or there are as many vCPUs as there can be.
    NoCpu = 35, "there is no CPU for all of its vCPUs";
    /// There are as many vPEs as there can be.
    NoVpe = 36, "there are as many vPEs as there can be";
    /// The image is larger than what may be sent, or than the domain's memory.
    TooLarge = 40, "the image is too large";
    /// The chunk does not follow the one before it, or is outside of the image.
    OutOfOrder = 41, "a part of an image is missing";
    /// An image is not complete, or there is no kernel.
    ImageIncomplete = 42, "the kernel or another image is not complete";
    /// The kernel is no arm64 Image, or is damaged.
    BadKernel = 43, "the kernel is no arm64 Image";
    /// The images do not fit into the domain's memory.
    DoesNotFit = 44, "the images do not fit into the domain's memory";
    /// No PCI host has this function.
    NoSuchFunction = 48, "there is no such PCI function";
    /// Another domain has the function.
    FunctionInUse = 49, "another domain has this PCI function";
    /// The function cannot be given to a domU; the text says why.
    NotAssignable = 50, "this PCI function cannot be given to a domain";
    /// No SMMU limits the DMA of the function.
    NoSmmu = 51, "no SMMU limits the DMA of this PCI function";
    /// The function could not be reset, and no domain gets it any more.
    ResetFailed = 52, "the PCI function could not be reset, and no domain gets it any more";
    /// There is no physical CPU with this number.
    NoSuchCpu = 56, "there is no such CPU";
    /// It is the last CPU in service, or the last on which a vCPU may run.
    LastCpu = 57, "this CPU is needed";
    /// The firmware or the hardware did not do it; the text says what.
    HardwareFailed = 58, "the hardware or the firmware refused";
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.text())
    }
}
