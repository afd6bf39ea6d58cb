//! Lines of JSON over an inherited socket, as `peer/channel.py` speaks them.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How long a silent peer is waited for.
const PATIENCE: Duration = Duration::from_secs(900);

/// One end.
pub struct Channel {
    lines: BufReader<UnixStream>,
}

impl Channel {
    /// Takes over an inherited file descriptor.
    ///
    /// # Safety
    /// Nobody else in this process may own it.
    #[must_use]
    pub unsafe fn of_descriptor(number: RawFd) -> Self {
        // SAFETY: the caller's.
        let stream = UnixStream::from(unsafe { OwnedFd::from_raw_fd(number) });
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            lines: BufReader::new(stream),
        }
    }

    /// Sends one message.
    pub fn send(&mut self, message: &impl Serialize) {
        let mut line = serde_json::to_vec(message).unwrap();
        line.push(b'\n');
        self.lines.get_mut().write_all(&line).unwrap();
    }

    /// Waits for one; none at the end of the conversation.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Option<T> {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line).unwrap();
        (read > 0).then(|| serde_json::from_str(&line).unwrap())
    }

    /// Whether there is something to receive, be it the end.
    #[must_use]
    pub fn has_message(&self) -> bool {
        if !self.lines.buffer().is_empty() {
            return true;
        }
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut ends = [PollFd::new(self.lines.get_ref(), PollFlags::IN)];
        poll(&mut ends, Some(&at_once)).unwrap() > 0
    }
}
