//! What is likely wrong where NIXL's status does not say it: the environment's part in a failure.
//!
//! NIXL folds most failures into one status. What it was told (variables) and what it was given (limits, devices) can
//! still be looked at. That is done when an error is made, never before; nothing is printed, and what cannot be found out
//! gives no hint.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::{env, fs};

use rustix::fs::statvfs;
use rustix::process::{Resource, getrlimit};

use crate::types::MemoryKind;

/// Where a status says nothing. The variables are read when the libraries are loaded.
const SAY_MORE: &str = "started with UCX_LOG_LEVEL=info and NIXL_LOG_LEVEL=INFO, the process says more";
/// An agent takes 8 to 13, more where there are RDMA devices.
const FILES_OF_AGENT: u64 = 16;
/// Less is little room for another agent.
const FEW_FILES: u64 = 2 * FILES_OF_AGENT;
/// Less is no room for the queues of another agent.
const LITTLE_SHM: u64 = 8 << 20;
/// The inode of the pid namespace that a machine starts with.
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;
const CAP_SYS_PTRACE: u64 = 1 << 19;

/// UCX's transports that carry messages and tell of a peer that is gone, but for those of RDMA devices.
const RELIABLE: &[&str] = &["all", "tcp", "ugni"];
const RDMA: &[&str] = &[
    "ib", "ud", "ud_v", "ud_x", "ud_verbs", "ud_mlx5", "rc", "rc_v", "rc_x", "rc_verbs", "rc_mlx5", "dc", "dc_x",
    "dc_mlx5", "srd", "gga", "gga_mlx5",
];
const OTHERS: &[&str] = &[
    "self",
    "mm",
    "shm",
    "sm",
    "posix",
    "sysv",
    "xpmem",
    "cma",
    "knem",
    "cuda",
    "cuda_copy",
    "cuda_ipc",
    "gdr_copy",
    "rocm",
    "rocm_copy",
    "rocm_ipc",
    "rocm_gdr",
    "ze",
    "ze_copy",
    "ze_ipc",
    "ze_gdr",
];
/// Those by which one process reads another's memory.
const SHARED: &[&str] = &["all", "shm", "sm", "cma"];

/// What was found out about this process and its machine. What could not be is absent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// `UCX_TLS`.
    transports: Option<String>,
    /// `UCX_NET_DEVICES`.
    chosen_devices: Option<String>,
    rdma_devices: Vec<String>,
    network_devices: Vec<String>,
    /// Bytes, where there is a limit.
    memlock: Option<u64>,
    /// Bytes that count against it already.
    locked: u64,
    /// How many more files can be opened, and the limit.
    files: Option<(u64, u64)>,
    shm: Option<Shm>,
    ptrace_scope: Option<u8>,
    may_trace: bool,
    /// Whether the machine starts more than this process sees, as it does around a container.
    is_in_pid_namespace: bool,
}

#[derive(Clone, Copy, Debug)]
enum Shm {
    Absent,
    Bytes { free: u64, size: u64 },
}

impl Facts {
    /// Looks around.
    pub(crate) fn here() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let limits = getrlimit(Resource::Nofile).current;
        Self {
            transports: variable("UCX_TLS"),
            chosen_devices: variable("UCX_NET_DEVICES"),
            rdma_devices: names_in("/sys/class/infiniband"),
            network_devices: names_in("/sys/class/net"),
            memlock: getrlimit(Resource::Memlock).current,
            locked: (kibibytes(&status, "VmLck:") + kibibytes(&status, "VmPin:")) << 10,
            files: limits.and_then(|limit| Some((limit.saturating_sub(open_files(limit)?), limit))),
            shm: shm(),
            ptrace_scope: fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope")
                .ok()
                .and_then(|scope| scope.trim().parse().ok()),
            may_trace: field(&status, "CapEff:")
                .and_then(|set| u64::from_str_radix(set, 16).ok())
                .is_some_and(|set| set & CAP_SYS_PTRACE != 0),
            is_in_pid_namespace: fs::metadata("/proc/self/ns/pid")
                .is_ok_and(|namespace| std::os::unix::fs::MetadataExt::ino(&namespace) != FIRST_PID_NAMESPACE),
        }
    }

    /// What to do where an agent or its back end could not be made.
    pub(crate) fn on_opening(&self, says_nothing: bool) -> String {
        let causes = [
            self.few_files(),
            self.bad_transports(),
            self.bad_devices(),
            self.little_shm(),
        ];
        let mut causes: Vec<String> = causes.into_iter().flatten().collect();
        if causes.is_empty() {
            causes.push("`dynamo-nixl doctor` shows what is installed".to_owned());
        }
        causes.extend(say_more(says_nothing));
        causes.join("; ")
    }

    /// What to do before another agent is made, where it would run out of files: UCX may end the process then.
    pub(crate) fn against_opening(&self) -> Option<String> {
        let (free, _) = self.files?;
        (free < FILES_OF_AGENT).then(|| self.few_files()).flatten()
    }

    /// What to do where memory could not be registered.
    pub(crate) fn on_registration(&self, kind: MemoryKind, bytes: u64, says_nothing: bool) -> String {
        let causes = [self.low_memlock(bytes), self.few_files(), self.little_shm()];
        let mut causes: Vec<String> = causes.into_iter().flatten().collect();
        match kind {
            MemoryKind::Vram => causes.push(
                "device memory needs a UCX with support for that device; move the tensor to the CPU otherwise"
                    .to_owned(),
            ),
            MemoryKind::Dram if causes.is_empty() => causes.push("check that the memory is still mapped".to_owned()),
            MemoryKind::Dram => {}
        }
        causes.extend(say_more(says_nothing));
        causes.join("; ")
    }

    /// What to do where a peer could not be reached, or bytes not moved.
    pub(crate) fn on_transfer(&self, says_nothing: bool) -> Option<String> {
        let causes = [
            self.untraceable(),
            self.few_files(),
            self.bad_devices(),
            say_more(says_nothing),
        ];
        let causes: Vec<String> = causes.into_iter().flatten().collect();
        (!causes.is_empty()).then(|| causes.join("; "))
    }

    /// What may be in the way of a peer that is in another pid namespace, or on another machine: which one cannot be told.
    pub(crate) fn on_other_host(&self) -> Option<String> {
        (self.is_in_pid_namespace && self.shares_memory()).then(|| {
            "if the peer is in another container of this machine, give both one pid namespace, or UCX_TLS=tcp"
                .to_owned()
        })
    }

    fn few_files(&self) -> Option<String> {
        let (free, limit) = self.files.filter(|(free, _)| *free < FEW_FILES)?;
        Some(format!(
            "only {free} more files can be opened of {limit}: raise `ulimit -n`"
        ))
    }

    fn bad_transports(&self) -> Option<String> {
        let value = self.transports.as_deref()?;
        let names = listed(value)?;
        let unknown: Vec<&str> = names
            .iter()
            .copied()
            .filter(|name| ![RELIABLE, RDMA, OTHERS].iter().any(|known| known.contains(name)))
            .collect();
        if names.iter().any(|name| RELIABLE.contains(name)) {
            return None;
        }
        if !unknown.is_empty() {
            return Some(format!(
                "UCX_TLS={value} asks for {}, which UCX may not have: unset it, or add tcp",
                unknown.join(", ")
            ));
        }
        if !names.iter().any(|name| RDMA.contains(name)) {
            return Some(format!(
                "UCX_TLS={value} has no transport that notices when a peer is gone: unset it, or add tcp"
            ));
        }
        self.rdma_devices.is_empty().then(|| {
            format!("UCX_TLS={value} asks for RDMA, and this machine shows no RDMA device: unset it, or add tcp")
        })
    }

    fn bad_devices(&self) -> Option<String> {
        let value = self.chosen_devices.as_deref()?;
        if self.network_devices.is_empty() {
            return None;
        }
        let known: BTreeSet<&str> = self
            .network_devices
            .iter()
            .chain(&self.rdma_devices)
            .map(String::as_str)
            .collect();
        let absent: Vec<&str> = listed(value)?
            .into_iter()
            .filter(|name| *name != "all" && !name.contains(['[', '*', '?']) && !known.contains(name))
            .collect();
        let known: Vec<&str> = known.into_iter().collect();
        (!absent.is_empty()).then(|| {
            format!(
                "UCX_NET_DEVICES names {}, which is not here: unset it, or choose from {}",
                absent.join(", "),
                known.join(", ")
            )
        })
    }

    fn low_memlock(&self, bytes: u64) -> Option<String> {
        let limit = self.memlock.filter(|_| !self.rdma_devices.is_empty())?;
        (self.locked.saturating_add(bytes) > limit).then(|| {
            format!(
                "RDMA devices pin memory, {bytes} bytes beside {} locked ones exceed the limit of {limit}: \
                 `ulimit -l unlimited`",
                self.locked
            )
        })
    }

    fn little_shm(&self) -> Option<String> {
        if !self.shares_memory() {
            return None;
        }
        match self.shm? {
            Shm::Absent => Some("there is no /dev/shm, which UCX needs: mount it, or set UCX_TLS=tcp".to_owned()),
            Shm::Bytes { free, size } => (free < LITTLE_SHM).then(|| {
                format!("/dev/shm has {free} bytes free of {size}: clear it, or enlarge it (containers: --shm-size=1g)")
            }),
        }
    }

    fn untraceable(&self) -> Option<String> {
        let scope = self
            .ptrace_scope
            .filter(|scope| *scope > 0 && !self.may_trace && self.shares_memory())?;
        Some(format!(
            "kernel.yama.ptrace_scope={scope} may keep processes of this machine from copying directly: set it to 0, or \
             grant CAP_SYS_PTRACE, or set UCX_TLS=tcp"
        ))
    }

    /// Whether UCX may use shared memory between processes.
    fn shares_memory(&self) -> bool {
        let Some(names) = self.transports.as_deref().and_then(listed) else {
            return true;
        };
        names
            .iter()
            .any(|name| SHARED.contains(name) || ["mm", "posix", "sysv", "xpmem", "knem"].contains(name))
    }
}

/// The names of a list of UCX's, without what follows a colon (a port, a role). `None` where it says what not to use.
fn listed(value: &str) -> Option<Vec<&str>> {
    if value.trim_start().starts_with('^') {
        return None;
    }
    let names = value.split(',').map(|entry| entry.trim().trim_start_matches('\\'));
    let names = names.filter_map(|entry| entry.split(':').next());
    Some(names.filter(|name| !name.is_empty()).collect())
}

fn say_more(says_nothing: bool) -> Option<String> {
    says_nothing.then(|| SAY_MORE.to_owned())
}

fn variable(name: &str) -> Option<String> {
    env::var_os(name)
        .map(OsString::into_string)
        .and_then(Result::ok)
        .filter(|value| !value.is_empty())
}

fn names_in(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}

/// How many files are open; all of `limit` where there is none left to look with.
fn open_files(limit: u64) -> Option<u64> {
    match fs::read_dir("/proc/self/fd") {
        // Without the one that is open for looking.
        Ok(entries) => Some((entries.count() as u64).saturating_sub(1)),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => Some(limit),
        Err(_) => None,
    }
}

fn shm() -> Option<Shm> {
    match statvfs("/dev/shm") {
        Ok(space) => Some(Shm::Bytes {
            free: space.f_bavail.saturating_mul(space.f_frsize),
            size: space.f_blocks.saturating_mul(space.f_frsize),
        }),
        Err(error) if io::Error::from(error).kind() == io::ErrorKind::NotFound => Some(Shm::Absent),
        Err(_) => None,
    }
}

/// The first word behind a name in `/proc/self/status`.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()
}

fn kibibytes(status: &str, name: &str) -> u64 {
    field(status, name).and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
