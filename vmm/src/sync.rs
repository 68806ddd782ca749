//! What the machine's threads share their data by.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes a mutex, also after a thread that held it panicked: what our mutexes guard is whole after every statement.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
