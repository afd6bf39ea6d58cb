//! The way into a lane's thread, and the sleep of that thread, which no change may slip past.
//!
//! What is sent wakes the thread by itself. What is changed beside the channel, under a lock of its own, is announced by
//! [`Door::touch`] afterwards: then the thread either has not taken its last look before it sleeps, or is woken.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc::error::{SendError, TryRecvError};

use crate::sync::{AtomicU8, UnboundedReceiver, UnboundedSender, unbounded_channel, within};

/// The thread looks, or will before it sleeps.
const AWAKE: u8 = 0;
/// The thread sleeps.
const ASLEEP: u8 = 1;
/// Something has changed since the thread was last awake without being told so.
const TOUCHED: u8 = 2;

/// One thread's mailbox, as others and as the thread has it.
pub(super) fn mailbox<T>() -> (Door<T>, Inbox<T>) {
    let bell = Arc::new(AtomicU8::new(AWAKE));
    let (sender, receiver) = unbounded_channel();
    let door = Door {
        bell: Arc::clone(&bell),
        sender,
    };
    (door, Inbox { bell, receiver })
}

/// For whoever tells the thread something.
pub(super) struct Door<T> {
    bell: Arc<AtomicU8>,
    sender: UnboundedSender<T>,
}

impl<T> Door<T> {
    /// Hands something in.
    ///
    /// # Errors
    /// What was to be handed in, where the thread takes nothing any more.
    pub(super) fn send(&self, message: T) -> Result<(), T> {
        self.sender.send(message).map_err(|SendError(refused)| refused)
    }

    /// Something has changed that the thread should look at. `wake` is handed in where it sleeps.
    pub(super) fn touch(&self, wake: T) {
        // Always written, since a look at it could be older than the thread's last look at what has changed.
        if self.bell.swap(TOUCHED, Ordering::AcqRel) == ASLEEP {
            // Refused where the thread has ended.
            let _ = self.send(wake);
        }
    }
}

/// For the thread.
pub(super) struct Inbox<T> {
    bell: Arc<AtomicU8>,
    receiver: UnboundedReceiver<T>,
}

impl<T> Inbox<T> {
    /// What has come, if anything has.
    ///
    /// # Errors
    /// As [`UnboundedReceiver::try_recv`].
    pub(super) fn try_recv(&mut self) -> Result<T, TryRecvError> {
        self.receiver.try_recv()
    }

    /// Waits for what comes next; `None` where nobody can send any more.
    pub(super) fn blocking_recv(&mut self) -> Option<T> {
        self.receiver.blocking_recv()
    }

    /// Refuses what comes from now on.
    pub(super) fn close(&mut self) {
        self.receiver.close();
    }

    /// Sleeps until something comes, for so long at most; not at all where something has been touched since the last time.
    ///
    /// # Errors
    /// `Empty` where there is nothing to take and reason to look; `Disconnected` where nobody can send any more.
    pub(super) fn rest(&mut self, duration: Duration) -> Result<T, TryRecvError> {
        let may_sleep = self
            .bell
            .compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        let taken = if may_sleep {
            within(duration, self.receiver.recv())
        } else {
            None
        };
        // Before the next look, so that whatever is touched during it is looked at once more.
        self.bell.swap(AWAKE, Ordering::AcqRel);
        match taken {
            None => Err(TryRecvError::Empty),
            Some(None) => Err(TryRecvError::Disconnected),
            Some(Some(message)) => Ok(message),
        }
    }
}

#[cfg(all(test, feature = "model"))]
mod model;
