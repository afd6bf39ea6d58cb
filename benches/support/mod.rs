//! Two processes for one benchmark: this executable, started a second time, is the owner that exposes memory.

pub(crate) mod core_side;
pub(crate) mod memory;
pub(crate) mod process;
pub(crate) mod protocol;
pub(crate) mod raw_side;
pub(crate) mod series;
pub(crate) mod transport_side;
