//! Who this process is to others, and whether another one still lives.
//!
//! Everything here is read from `/proc`, which may be hidden, foreign or absent. Where it says nothing for certain,
//! neither does this module: a peer that is wrongly held for dead costs more than one that is not noticed.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fs, io, process};

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use crate::types::ProcessId;

/// Set in a task's flags from early in its exit on, before its memory and its sockets go.
const PF_EXITING: u32 = 0x4;
/// SIGKILL in a set of signals. A task that belongs to a process on its end has it pending until it exits itself.
const KILLED: u64 = 1 << 8;

/// What can be said about a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Liveness {
    /// It exists and is not about to exit. It may be stopped.
    Alive,
    /// It has ended or is ending: nothing will be heard of it any more.
    Dead,
    /// It is out of sight, in another pid namespace or on another machine, or hidden from us.
    Elsewhere,
}

/// The host and the start of the process that has asked last, below its pid. A forked child finds its parent's pid
/// there, without a lock that the parent may have held.
static HOST: AtomicU64 = AtomicU64::new(0);
static START: AtomicU64 = AtomicU64::new(0);

/// This process. `None` where `/proc` cannot be read, or is another pid namespace's.
#[must_use]
pub fn here() -> Option<ProcessId> {
    let pid = process::id();
    if let (Some(host), Some(start)) = (recall(&HOST, pid), recall(&START, pid)) {
        return Some(ProcessId { pid, start, host });
    }
    let stat = Stat::read("/proc/self/stat").ok()?;
    // Any other number says that the /proc that is mounted counts the processes of another namespace.
    if stat.pid != pid {
        return None;
    }
    let start = stat.start;
    let host = host()?;
    remember(&HOST, pid, host);
    remember(&START, pid, start);
    Some(ProcessId { pid, start, host })
}

/// Whether `process` lives, as far as it can be seen from here.
///
/// A killed process is dead as soon as its memory and its sockets may be gone, before it has become a zombie. So what
/// asks because a transfer has failed learns whether that is the reason.
#[must_use]
pub fn liveness(process: &ProcessId) -> Liveness {
    match here() {
        Some(here) if here == *process => Liveness::Alive,
        Some(here) if here.host == process.host => look(process),
        _ => Liveness::Elsewhere,
    }
}

fn look(process: &ProcessId) -> Liveness {
    match Stat::read(format!("/proc/{}/stat", process.pid)) {
        Ok(stat) if stat.start != process.start => Liveness::Dead,
        Ok(stat) if stat.is_exiting() && !has_survivors(process.pid, &stat) => Liveness::Dead,
        Ok(_) => Liveness::Alive,
        Err(error) if is_absent(&error) && exists(process.pid) == Some(false) => Liveness::Dead,
        Err(_) => Liveness::Elsewhere,
    }
}

/// Whether a process is stopped, by a signal or a debugger. False where nothing can be said.
#[must_use]
pub fn is_stopped(process: &ProcessId) -> bool {
    let is_here = here().is_some_and(|here| here.host == process.host);
    is_here
        && Stat::read(format!("/proc/{}/stat", process.pid))
            .is_ok_and(|stat| stat.start == process.start && matches!(stat.state, b'T' | b't'))
}

/// Whether a thread lives on behind a first one that is exiting, which is no more than a thread of its process.
fn has_survivors(pid: u32, first: &Stat) -> bool {
    if first.threads <= 1 {
        return false;
    }
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    tasks
        .flatten()
        .filter_map(|task| Stat::read(task.path().join("stat")).ok())
        .any(|task| !task.is_exiting() && !task.is_killed())
}

/// Whether there is such a process, by asking the kernel itself: /proc may be mounted with `hidepid`, which shows what
/// it hides as absent. `None` where the number cannot be a pid.
fn exists(pid: u32) -> Option<bool> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    Some(test_kill_process(pid) != Err(Errno::SRCH))
}

/// Whether an error of /proc says that there is no such process. One that ends between opening and reading is another
/// error than one that was not there.
fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || Errno::from_io_error(error) == Some(Errno::SRCH)
}

/// The pid namespace among all of all kernels that run, together with the time namespace: /proc tells the start of a process
/// by the clock of whoever reads it.
fn host() -> Option<u32> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let pids = fs::metadata("/proc/self/ns/pid").ok()?.ino();
    // A kernel without it has one clock.
    let time = fs::metadata("/proc/self/ns/time").map_or(0, |namespace| namespace.ino());
    Some(host_of(boot.trim_end(), pids, time))
}

fn host_of(boot: &str, pids: u64, time: u64) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(boot.as_bytes());
    crc.update(&pids.to_le_bytes());
    crc.update(&time.to_le_bytes());
    crc.sum()
}

fn remember(cell: &AtomicU64, pid: u32, value: u32) {
    cell.store((u64::from(pid) << 32) | u64::from(value), Ordering::Relaxed);
}

fn recall(cell: &AtomicU64, pid: u32) -> Option<u32> {
    let both = cell.load(Ordering::Relaxed);
    let value = u32::try_from(both & u64::from(u32::MAX)).ok()?;
    (both >> 32 == u64::from(pid)).then_some(value)
}

/// What a line of `/proc/pid/stat` says about a task, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    pid: u32,
    state: u8,
    flags: u32,
    threads: u64,
    start: u32,
    /// The signals that are pending for this task alone.
    pending: u64,
}

impl Stat {
    fn read(path: impl AsRef<Path>) -> io::Result<Self> {
        let line = fs::read(path)?;
        Self::parse(&line).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The name in the line's second field is any bytes in parentheses, among them spaces, parentheses and lines that
    /// look like this one; behind its end there are only numbers and the letter of the state.
    fn parse(line: &[u8]) -> Option<Self> {
        let name = line.iter().position(|byte| *byte == b' ')?;
        let rest = line.iter().rposition(|byte| *byte == b')')?;
        let pid = std::str::from_utf8(&line[..name]).ok()?.parse().ok()?;
        let fields: Vec<&str> = std::str::from_utf8(line.get(rest + 1..)?)
            .ok()?
            .split_ascii_whitespace()
            .collect();
        // Numbered as in proc(5), which counts from 1; the first one here is the third.
        let field = |number: usize| fields.get(number - 3).copied();
        let number = |position: usize| field(position)?.parse::<u64>().ok();
        let lower = u64::from(u32::MAX);
        Some(Self {
            pid,
            state: *field(3)?.as_bytes().first()?,
            flags: u32::try_from(number(9)?).ok()?,
            threads: number(20)?,
            start: u32::try_from(number(22)? & lower).ok()?,
            pending: number(31)?,
        })
    }

    fn is_exiting(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x') || self.flags & PF_EXITING != 0
    }

    fn is_killed(&self) -> bool {
        self.pending & KILLED != 0
    }
}

#[cfg(test)]
mod tests;
