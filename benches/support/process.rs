//! The owner's process, seen from both of its ends.

use std::env;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write, stdin, stdout};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;

use dynamo_nixl::types::{Direction, MemoryRange};

use super::protocol::{Batch, END, Exposed, Kind};

/// Set in the owner's environment, to its [`Kind`] and the size of its arena.
const ROLE: &str = "DYNAMO_NIXL_BENCH_OWNER";

/// Which owner this process is, and with how many bytes; `None`: it is the reader.
pub(crate) fn role() -> Option<(Kind, usize)> {
    let role = env::var(ROLE).ok()?;
    let (kind, bytes) = role.split_once(' ').unwrap();
    let kind = Kind::from_name(kind).expect("an unknown kind of owner");
    Some((kind, bytes.parse().unwrap()))
}

/// Starts this program anew unless UCX's EFA module is kept out: with the system's libefa it crashes the exit.
///
/// The environment cannot be changed later: UCX reads it when it is loaded, and Rust's `set_var` is unsafe.
pub(crate) fn keep_efa_out() {
    const MODULES: &str = "UCX_MODULES";
    if env::var_os(MODULES).is_none() {
        let error = Command::new(this_program())
            .args(env::args_os().skip(1))
            .env(MODULES, "^efa")
            .exec();
        panic!("the benchmark could not start itself anew: {error}");
    }
}

fn this_program() -> impl AsRef<OsStr> {
    env::current_exe().unwrap()
}

/// The owner as the reader holds it. Dropping it ends the process.
pub(crate) struct Owner {
    child: Child,
    requests: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
}

impl Owner {
    pub(crate) fn spawn(kind: Kind, bytes: usize) -> Self {
        let mut child = Command::new(this_program())
            .env(ROLE, format!("{} {bytes}", kind.name()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let requests = child.stdin.take();
        let replies = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            requests,
            replies,
        }
    }

    /// Has the owner expose a batch.
    pub(crate) fn expose(&mut self, batch: Batch) -> Vec<Exposed> {
        self.send(&batch.to_string());
        (0..batch.count).map(|_| Exposed::parse(&self.receive())).collect()
    }

    /// Has it end the batch.
    pub(crate) fn end(&mut self) {
        self.send(END);
        assert_eq!(self.receive(), END);
    }

    fn send(&mut self, line: &str) {
        writeln!(self.requests.as_mut().unwrap(), "{line}").unwrap();
    }

    fn receive(&mut self) -> String {
        let mut line = String::new();
        self.replies.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "the owner ended early");
        line.trim_end().to_owned()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // The end of its input is what it waits for.
        drop(self.requests.take());
        let status = self.child.wait().unwrap();
        assert!(
            status.success() || thread::panicking(),
            "the owner ended badly: {status}"
        );
    }
}

/// The reader's work.
pub(crate) trait Reader {
    /// Whether the next so many transfers need [`Reader::meet`] first.
    fn is_new(&self, transfers: usize) -> bool;

    /// Gets ready for its owner, off the clock. A transfer follows that does not count, since it connects.
    fn meet(&mut self, exposed: &Exposed);

    /// Waits until what the first transfer has set off is done, such as agents that help with later ones.
    fn settle(&mut self) {}

    /// Moves the bytes and waits for the end. The exposure is laid out as `local` is.
    fn transfer(&mut self, direction: Direction, exposed: &Exposed, local: &[MemoryRange]);

    /// Makes a transfer for each of these, all under way at once where the implementation can.
    fn transfer_all(&mut self, direction: Direction, exposed: &[Exposed], local: &[Vec<MemoryRange>]) {
        for (exposed, local) in exposed.iter().zip(local) {
            self.transfer(direction, exposed, local);
        }
    }
}

/// The owner's work, for [`serve`].
pub(crate) trait Exposer {
    /// Exposes a batch.
    fn expose(&mut self, batch: Batch) -> Vec<Exposed>;

    /// Ends it.
    fn end(&mut self);

    /// Whether [`Exposer::poll`] has to be called while a batch is exposed.
    const POLLS: bool;

    /// Drives the wire.
    fn poll(&mut self) {}
}

/// Serves requests until there are no more.
pub(crate) fn serve<E: Exposer>(mut exposer: E) {
    let requests = read_requests();
    let mut output = stdout().lock();
    let mut is_exposed = false;
    while let Some(line) = next(&requests, &mut exposer, is_exposed) {
        is_exposed = line != END;
        if is_exposed {
            for exposed in exposer.expose(Batch::parse(&line)) {
                writeln!(output, "{exposed}").unwrap();
            }
        } else {
            exposer.end();
            writeln!(output, "{END}").unwrap();
        }
        output.flush().unwrap();
    }
}

/// A thread reads, so that the owner can poll meanwhile.
fn read_requests() -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        stdin()
            .lines()
            .map_while(Result::ok)
            .try_for_each(|line| sender.send(line))
    });
    receiver
}

fn next<E: Exposer>(requests: &Receiver<String>, exposer: &mut E, is_exposed: bool) -> Option<String> {
    if E::POLLS && is_exposed {
        loop {
            match requests.try_recv() {
                Ok(line) => return Some(line),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => exposer.poll(),
            }
        }
    }
    // Between batches even an owner that polls is idle, so as not to disturb what else is measured.
    requests.recv().ok()
}
