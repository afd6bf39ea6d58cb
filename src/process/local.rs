//! Values that each process has for itself.

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::Origin;

/// A static of this process. A forked child leaves alone what it finds there, and makes its own: a lock in it may have been
/// held when the child was forked off, and nobody would ever release it; threads in it do not exist there.
pub(crate) struct PerProcess<T: 'static> {
    current: AtomicPtr<Owned<T>>,
}

struct Owned<T> {
    origin: Origin,
    value: T,
}

impl<T: Default + Sync + 'static> PerProcess<T> {
    /// Nothing yet.
    pub(crate) const fn new() -> Self {
        Self {
            current: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// This process's, if it has asked for it before.
    pub(crate) fn existing(&self) -> Option<&'static T> {
        // SAFETY: the pointer is null or comes from `Box::leak` in `here`, the only place that stores one: what it points
        // to was whole before it was stored (Release, Acquire), is only ever shared, and is never freed.
        let owned = unsafe { self.current.load(Ordering::Acquire).as_ref() };
        owned.filter(|owned| owned.origin.is_here()).map(|owned| &owned.value)
    }

    /// This process's.
    pub(crate) fn here(&self) -> &'static T {
        loop {
            let seen = self.current.load(Ordering::Acquire);
            if let Some(value) = self.existing() {
                return value;
            }
            let fresh: *mut Owned<T> = Box::leak(Box::new(Owned {
                origin: Origin::here(),
                value: T::default(),
            }));
            // Where another thread was faster, these few bytes are lost: once in the life of a process, at most.
            let _ = self
                .current
                .compare_exchange(seen, fresh, Ordering::AcqRel, Ordering::Acquire);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::sync::lock::Mutex;

    use super::super::samples::in_child;
    use super::*;

    #[test]
    fn a_child_has_its_own_and_not_the_locked_one_of_its_parent() {
        static VALUE: PerProcess<Mutex<u32>> = PerProcess::new();
        assert!(VALUE.existing().is_none());
        let mut held = VALUE.here().lock();
        *held = 7;
        assert!(in_child(|| {
            assert!(VALUE.existing().is_none());
            let mut own = VALUE.here().lock();
            assert_eq!(*own, 0);
            *own = 8;
        }));
        assert_eq!(*held, 7);
        drop(held);
        assert_eq!(*VALUE.here().lock(), 7);
    }
}
