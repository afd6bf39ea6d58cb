//! Processes to look at, for the tests.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::here;
use crate::types::ProcessId;

/// Longer than anything here takes on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until `look` is true; whether it was in time.
pub(super) fn eventually(mut look: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !look() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

/// The state and the start of a task, read by other means than those under test.
pub(super) fn state_and_start(pid: u32) -> (String, u32) {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = line.rsplit_once(") ").unwrap().1.split(' ').collect();
    let start: u64 = fields[19].parse().unwrap();
    (fields[0].to_owned(), (start & 0xffff_ffff) as u32)
}

/// The name of a process of this host.
pub(super) fn name_of(pid: u32) -> ProcessId {
    let (_, start) = state_and_start(pid);
    let host = here().unwrap().host;
    ProcessId { pid, start, host }
}

/// A child that does nothing, and is killed and reaped with this value.
pub(super) struct Sleeper {
    child: Child,
    pub(super) id: ProcessId,
}

impl Sleeper {
    pub(super) fn start() -> Self {
        let mut command = Command::new("sleep");
        command.arg("600").stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(Stdio::null()).spawn().unwrap();
        let id = name_of(child.id());
        Self { child, id }
    }

    pub(super) fn signal(&self, signal: Signal) {
        signal_to(self.id.pid, signal);
    }

    pub(super) fn is_in(&self, state: &str) -> bool {
        state_and_start(self.id.pid).0 == state
    }

    /// Kills it and takes it out of the table of processes.
    pub(super) fn reap(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn signal_to(pid: u32, signal: Signal) {
    kill_process(pid_of(pid), signal).unwrap();
}

/// Runs `body` in a forked child; whether it returned there.
pub(crate) fn in_child(body: impl FnOnce()) -> bool {
    let pid = fork(body);
    let status = waitpid(Some(pid_of(pid)), WaitOptions::empty()).unwrap().unwrap().1;
    status.exit_status() == Some(0)
}

/// Forks a child that ends with `body`. The kernel ends one that hangs.
pub(super) fn fork(body: impl FnOnce()) -> u32 {
    // SAFETY: The child has this thread alone. It takes no lock that another one may hold: glibc's allocator is whole in
    // a child, and what it uses of the crate is made for that, which is what is tested.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "no child");
    if pid == 0 {
        // SAFETY: It only sets a timer of the child's.
        unsafe { libc::alarm(60) };
        let status = catch_unwind(AssertUnwindSafe(body));
        // SAFETY: Ends the process at once, without running anything of it: what it inherited is its parent's.
        unsafe { libc::_exit(i32::from(status.is_err())) };
    }
    u32::try_from(pid).unwrap()
}

pub(super) fn wait_for(pid: u32) {
    waitpid(Some(pid_of(pid)), WaitOptions::empty()).unwrap();
}

fn pid_of(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}
