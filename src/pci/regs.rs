//! Registers of configuration space: offsets and bits.

/// Vendor ID and Device ID; ones if there is no function (7.5.1.1.1).
pub const ID: u64 = 0x00;
/// A read of a function that does not exist.
pub const NONE: u32 = u32::MAX;
/// The Vendor ID that a root port returns for a function that asks to be asked again (2.3.2).
pub const NOT_READY: u32 = 0x0001;
/// Command and Status.
pub const COMMAND: u64 = 0x04;
/// Command: I/O Space Enable, Memory Space Enable, Bus Master Enable.
pub const DECODES: u32 = 0b111;
/// Command: Memory Space Enable, Bus Master Enable, Interrupt Disable (7.5.1.1.3).
pub const MEMORY_SPACE: u32 = 1 << 1;
pub const BUS_MASTER: u32 = 1 << 2;
pub const INTERRUPT_DISABLE: u32 = 1 << 10;
/// Command: Parity Error Response and SERR# Enable, which decide what is reported and nothing else.
pub const REPORTS: u32 = 1 << 6 | 1 << 8;
/// Status, by itself: what is cleared by writing ones (7.5.1.1.4).
pub const STATUS: u64 = 0x06;
pub const STATUS_ERRORS: u32 = 0xf900;
/// Revision ID and Class Code.
pub const CLASS: u64 = 0x08;
/// Status: Capabilities List.
pub const HAS_CAPABILITIES: u32 = 1 << 20;
/// The word with the Header Type, and the Cache Line Size, a byte without effect (7.5.1.1.7).
pub const HEADER: u64 = 0x0c;
/// Header Type, bits 22:16 of that word.
pub const HEADER_TYPE: u32 = 0x7f << 16;
/// Header Type of a bridge.
pub const BRIDGE: u32 = 1 << 16;
/// Header Type: Multi-Function Device.
pub const MULTI_FUNCTION: u32 = 1 << 23;
/// The first Base Address Register (7.5.1.2.1).
pub const BARS: u64 = 0x10;
/// The number of Base Address Registers.
pub const BAR_COUNT: usize = 6;
/// BAR: I/O Space; Memory Type 64-bit within its two bits; Prefetchable; the bits that are no address.
pub const BAR_IO: u32 = 1 << 0;
pub const BAR_TYPE: u32 = 0b11 << 1;
pub const BAR_64: u32 = 0b10 << 1;
pub const BAR_PREFETCHABLE: u32 = 1 << 3;
pub const BAR_FLAGS: u32 = 0xf;
pub const BAR_IO_FLAGS: u32 = 0b11;
/// Subsystem Vendor ID and Subsystem ID.
pub const SUBSYSTEM: u64 = 0x2c;
/// Expansion ROM Base Address.
pub const ROM: u64 = 0x30;
/// Interrupt Line, with the Interrupt Pin.
pub const INTERRUPT_LINE: u64 = 0x3c;
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
/// Capability IDs: MSI (7.7.1), MSI-X (7.7.2).
pub const MSI: u8 = 0x05;
pub const MSI_X: u8 = 0x11;
pub const EXPRESS: u8 = 0x10;
pub const FLATTENING: u8 = 0x15;

/// Power Management Capabilities, in the upper half: the version of the capability.
pub const POWER_VERSION: u32 = 0b111 << 16;
/// Bytes of the Power Management capability.
pub const POWER_LEN: u64 = 8;
/// Power Management Control/Status: No_Soft_Reset, with which the way from D3hot to D0 resets nothing.
pub const NO_SOFT_RESET: u32 = 1 << 3;
/// Power Management Control/Status.
pub const POWER_CONTROL: u64 = 0x04;
/// PowerState: a bridge that comes back from D3hot may have lost its bus numbers.
pub const POWER_STATE: u32 = 0b11;
/// MSI: Message Control, in the upper half of the first word: MSI Enable, Multiple Message Capable (log2 of the number),
/// Multiple Message Enable, 64-bit Address Capable, Per-Vector Masking Capable (7.7.1.2).
pub const MSI_ENABLE: u32 = 1 << 0;
pub const MSI_CAPABLE_SHIFT: u32 = 1;
pub const MSI_ENABLED_SHIFT: u32 = 4;
pub const MSI_COUNT: u32 = 0b111;
pub const MSI_64: u32 = 1 << 7;
pub const MSI_MASKS: u32 = 1 << 8;
/// MSI: the bits above, without those for extended message data.
pub const MSI_CONTROL: u32 = 0x1ff;
/// MSI: Message Address, whose two lowest bits are reserved.
pub const MSI_ADDRESS: u64 = 0x04;
pub const MSI_ADDRESS_BITS: u32 = !0b11;

/// MSI-X: Message Control, in the upper half of the first word: Table Size (less one), Function Mask, MSI-X Enable
/// (7.7.2.2).
pub const MSI_X_SIZE: u32 = 0x7ff;
pub const MSI_X_CONTROLS: u32 = 1 << 14 | 1 << 15;
/// MSI-X: where the table and the Pending Bit Array are, as a BAR (its BIR) and an offset there.
pub const MSI_X_TABLE: u64 = 0x04;
pub const MSI_X_PENDING: u64 = 0x08;
pub const MSI_X_BIR: u32 = 0b111;
/// Bytes of the MSI-X capability, and of an entry of its table.
pub const MSI_X_LEN: u64 = 12;
pub const MSI_X_ENTRY: u64 = 16;
/// MSI, MSI-X: Message Control, by itself.
pub const MESSAGE_CONTROL: u64 = 0x02;

/// PCI Express Capabilities, in the upper half of the first word: Capability Version, Device/Port Type (7.5.3.2).
pub const EXPRESS_VERSION: u32 = 0xf << 16;
pub const EXPRESS_TYPE_SHIFT: u32 = 20;
pub const EXPRESS_TYPE: u32 = 0xf;
/// Device/Port Type of a Root Complex Integrated Endpoint.
pub const INTEGRATED_TYPE: u32 = 0b1001;
/// Bytes of the PCI Express capability that every function has, and those of version 2.
pub const EXPRESS_LEN: u64 = 0x0c;
pub const EXPRESS2_LEN: u64 = 0x3c;
/// Device Capabilities: Max_Payload_Size Supported, Extended Tag Field Supported, Role-Based Error Reporting, Function
/// Level Reset Capability (7.5.3.3).
pub const DEVICE_CAPABILITIES: u64 = 0x04;
pub const PAYLOADS: u32 = 0b111;
pub const EXTENDED_TAGS: u32 = 1 << 5;
pub const ROLE_BASED_ERRORS: u32 = 1 << 15;
pub const FUNCTION_RESET_CAPABLE: u32 = 1 << 28;
/// Device Control: the enables of error messages (7.5.3.4).
pub const ERROR_MESSAGES: u32 = 0xf;
/// Device Control: Enable Relaxed Ordering, Enable No Snoop.
pub const ORDERING: u32 = 1 << 4 | 1 << 11;
/// Device Control: Max_Read_Request_Size, and the largest encoding of it.
pub const READ_SIZE_SHIFT: u32 = 12;
pub const READ_SIZE: u32 = 0b111;
pub const READ_SIZE_MOST: u32 = 5;
/// Device Control: what belongs to the path to the memory and not to the function's driver: Max_Payload_Size, Extended
/// Tag Field Enable.
pub const OF_THE_PATH: u32 = 0b111 << 5 | 1 << 8;
/// Device Status, by itself: errors, which are cleared by writing ones; Transactions Pending (7.5.3.5).
pub const DEVICE_STATUS: u64 = 0x0a;
pub const DEVICE_ERRORS: u32 = 0xf;
pub const TRANSACTIONS_PENDING: u32 = 1 << 5;
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

/// Extended capability IDs: Advanced Error Reporting (7.8.4), Access Control Services (7.7.11).
pub const ADVANCED_ERRORS: u16 = 0x0001;
pub const ACCESS_CONTROL: u16 = 0x000d;
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

/// ACS Capability, and ACS Control in the upper half (7.7.11.2, 7.7.11.3).
pub const ACS_REGISTERS: u64 = 0x04;
/// ACS: Source Validation, P2P Request Redirect, P2P Completion Redirect, Upstream Forwarding: with these nothing goes
/// from a function to another without passing the root complex, and its SMMU.
pub const ACS_ISOLATES: u16 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4;
