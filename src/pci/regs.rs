//! Registers of configuration space: offsets and bits.

/// Vendor ID and Device ID; ones if there is no function (7.5.1.1.1).
pub const ID: u64 = 0x00;
/// A read of a function that does not exist.
pub const NONE: u32 = u32::MAX;
/// Command and Status.
pub const COMMAND: u64 = 0x04;
/// Command: I/O Space Enable, Memory Space Enable, Bus Master Enable.
pub const DECODES: u32 = 0b111;
/// Status: Capabilities List.
pub const HAS_CAPABILITIES: u32 = 1 << 20;
/// The word with the Header Type.
pub const HEADER: u64 = 0x0c;
/// Header Type, bits 22:16 of that word.
pub const HEADER_TYPE: u32 = 0x7f << 16;
/// Header Type of a bridge.
pub const BRIDGE: u32 = 1 << 16;
/// Header Type: Multi-Function Device.
pub const MULTI_FUNCTION: u32 = 1 << 23;
/// Capabilities Pointer.
pub const CAPABILITIES: u64 = 0x34;
/// The first extended capability.
pub const EXTENDED: u64 = 0x100;

/// Registers of a bridge (7.5.1.3): bus numbers.
pub const BUSES: u64 = 0x18;
/// Primary, Secondary and Subordinate Bus Number.
pub const BUS_NUMBERS: u32 = 0x00ff_ffff;
/// I/O Base and Limit, with the Secondary Status.
pub const IO_WINDOW: u64 = 0x1c;
/// I/O Base and Limit.
pub const IO_BASE_LIMIT: u32 = 0xffff;
/// Memory Base and Limit, Prefetchable Memory Base and Limit, their upper halves, the upper halves of I/O Base and
/// Limit.
pub const WINDOWS: [u64; 5] = [0x20, 0x24, 0x28, 0x2c, 0x30];
/// Interrupt Line, Interrupt Pin and Bridge Control.
pub const BRIDGE_CONTROL: u64 = 0x3c;
/// Bridge Control: ISA Enable, VGA Enable, VGA 16-bit Decode, which route accesses, and Secondary Bus Reset.
pub const ROUTES_OR_RESETS: u32 = (1 << 2 | 1 << 3 | 1 << 4 | 1 << 6) << 16;

/// Capability IDs: Power Management (7.5.2), PCI Express (7.5.3), Flattening Portal Bridge (7.8.11).
pub const POWER: u8 = 0x01;
pub const EXPRESS: u8 = 0x10;
pub const FLATTENING: u8 = 0x15;

/// Power Management Control/Status.
pub const POWER_CONTROL: u64 = 0x04;
/// PowerState: a bridge that comes back from D3hot may have lost its bus numbers.
pub const POWER_STATE: u32 = 0b11;
/// Device Control.
pub const DEVICE_CONTROL: u64 = 0x08;
/// Device Control: Initiate Function Level Reset.
pub const FUNCTION_RESET: u32 = 1 << 15;
/// Link Control.
pub const LINK_CONTROL: u64 = 0x10;
/// Link Control: Link Disable, which resets what is behind the link.
pub const LINK_DISABLE: u32 = 1 << 4;
/// Slot Control.
pub const SLOT_CONTROL: u64 = 0x18;
/// Slot Control: Power Controller Control, Electromechanical Interlock Control.
pub const SLOT_POWER: u32 = 1 << 10 | 1 << 11;
/// Device Control 2.
pub const DEVICE_CONTROL2: u64 = 0x28;
/// Device Control 2: ARI Forwarding Enable, with which the device number is part of the function number.
pub const ARI_FORWARDING: u32 = 1 << 5;
/// The Flattening Portal Bridge capability has so many words. Its registers route bus numbers and addresses.
pub const FLATTENING_WORDS: u64 = 9;

/// Extended capability IDs: ARI (7.8.8), SR-IOV (9.3.3), Downstream Port Containment (7.9.14).
pub const ARI: u16 = 0x000e;
pub const SR_IOV: u16 = 0x0010;
pub const CONTAINMENT: u16 = 0x001d;

/// SR-IOV Control, with the Status.
pub const VF_CONTROL: u64 = 0x08;
/// SR-IOV Control: VF Enable.
pub const VF_ENABLE: u32 = 1 << 0;
/// NumVFs, in the lower half.
pub const VF_COUNT: u64 = 0x10;
/// First VF Offset, and VF Stride in the upper half.
pub const VF_PLACE: u64 = 0x14;
/// DPC Capability, and DPC Control in the upper half.
pub const CONTAINMENT_CONTROL: u64 = 0x04;
/// DPC Control: DPC Software Trigger, which takes the link down.
pub const SOFTWARE_TRIGGER: u32 = (1 << 6) << 16;
