//! How much of everything is believed. What exceeds a limit is refused before memory is spent on it.
//!
//! Each limit lies far above what real peers send and far below what hurts the process that reads it.

/// Characters in the text form of a peer's metadata.
///
/// One region takes about 430; an upstream agent with 1024 registrations about 4 900. The text is held in memory
/// together with its bytes, so the limit also bounds what one message can make us allocate.
pub const MAX_ENCODED_TEXT: usize = 8 * 1024 * 1024;

/// Bytes of a decompressed agent blob. Deflate reaches 1:1000, so the text limit alone would allow gigabytes.
pub const MAX_BLOB: usize = 32 * 1024 * 1024;

/// Bytes of an agent's name. Names are a worker's identifier and a number; NIXL copies them into every map it keeps.
pub const MAX_AGENT_NAME: usize = 1024;

/// Bytes of a back end's name. NIXL's own are words such as `UCX` or `LIBFABRIC`.
pub const MAX_BACKEND_NAME: usize = 64;

/// Back ends whose connection information one agent may send.
pub const MAX_CONNECTIONS: usize = 64;

/// Bytes of one back end's connection information. A UCX address grows with the number of network devices: about
/// 200 bytes without any, some thousands on a machine with eight.
pub const MAX_CONNECTION_INFO: usize = 1024 * 1024;

/// Sections (pairs of back end and memory kind) in one blob.
pub const MAX_SECTIONS: usize = 128;

/// Regions in all sections of one blob together. A full blob of an upstream agent lists all its registrations.
pub const MAX_REGIONS: usize = 256 * 1024;

/// Regions of one section that may be listed in any order; NIXL itself sorts them.
pub const MAX_UNSORTED_REGIONS: usize = 4096;

/// Bytes of one region's remote key. A UCX key holds at most 64 parts of at most 255 bytes, so 64 KiB is ample.
pub const MAX_KEY: usize = 64 * 1024;

/// Bytes of a trailer. Version 1.1 writes 65 at most; the rest is room for fields of later minor versions.
pub const MAX_TRAILER: usize = 1024;

/// Bytes of a control message without its base64. All but the sender's connection takes some dozens.
pub const MAX_CONTROL_MESSAGE: usize = 64 * 1024;

/// Bytes of the text in a control message. It ends up in the message of one exception.
pub const MAX_CONTROL_TEXT: usize = 1024;

/// Bytes of a notification key. Upstream's are 36, other workers' some dozens; it is sent with the last piece.
pub const MAX_NOTIFICATION_KEY: usize = 4096;
