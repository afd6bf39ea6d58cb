//! A channel as tokio's unbounded one, of loom's lock: what is modelled is who uses it, not tokio.
//!
//! As there, a message that is let in is not there at once, and `try_recv` does not wait for it.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::mpsc::error::{SendError, TryRecvError};

use super::{Condvar, Mutex};

pub(crate) fn unbounded_channel<T>() -> (UnboundedSender<T>, UnboundedReceiver<T>) {
    let channel = Arc::new(Channel {
        state: Mutex::new(State {
            messages: VecDeque::new(),
            coming: 0,
            has_sender: true,
            has_receiver: true,
        }),
        signal: Condvar::new(),
    });
    (UnboundedSender(Arc::clone(&channel)), UnboundedReceiver(channel))
}

struct Channel<T> {
    state: Mutex<State<T>>,
    signal: Condvar,
}

struct State<T> {
    messages: VecDeque<T>,
    /// Let in, and not there yet.
    coming: usize,
    has_sender: bool,
    has_receiver: bool,
}

impl<T> State<T> {
    fn may_get_more(&self) -> bool {
        self.coming > 0 || (self.has_sender && self.has_receiver)
    }
}

pub(crate) struct UnboundedSender<T>(Arc<Channel<T>>);

impl<T> UnboundedSender<T> {
    pub(crate) fn send(&self, message: T) -> Result<(), SendError<T>> {
        {
            let mut state = self.0.state.lock();
            if !state.has_receiver {
                return Err(SendError(message));
            }
            state.coming += 1;
        }
        let mut state = self.0.state.lock();
        state.coming -= 1;
        state.messages.push_back(message);
        self.0.signal.notify_one();
        Ok(())
    }
}

impl<T> Drop for UnboundedSender<T> {
    fn drop(&mut self) {
        self.0.state.lock().has_sender = false;
        self.0.signal.notify_one();
    }
}

pub(crate) struct UnboundedReceiver<T>(Arc<Channel<T>>);

impl<T> UnboundedReceiver<T> {
    pub(crate) fn try_recv(&mut self) -> Result<T, TryRecvError> {
        let mut state = self.0.state.lock();
        match state.messages.pop_front() {
            Some(message) => Ok(message),
            None if state.may_get_more() => Err(TryRecvError::Empty),
            None => Err(TryRecvError::Disconnected),
        }
    }

    pub(crate) fn blocking_recv(&mut self) -> Option<T> {
        let mut state = self.0.state.lock();
        loop {
            match state.messages.pop_front() {
                None if state.may_get_more() => self.0.signal.wait(&mut state),
                message => return message,
            }
        }
    }

    pub(crate) async fn recv(&mut self) -> Option<T> {
        self.blocking_recv()
    }

    pub(crate) fn close(&mut self) {
        self.0.state.lock().has_receiver = false;
    }
}

impl<T> Drop for UnboundedReceiver<T> {
    fn drop(&mut self) {
        self.close();
        // What is left may hold what takes locks: dropped without this one.
        let left = std::mem::take(&mut self.0.state.lock().messages);
        drop(left);
    }
}
