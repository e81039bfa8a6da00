//! Threads: no other module knows of them.

/// Runs `f` on a thread where [`join`] is cheap: with the feature `rayon`, on a thread of the pool.
#[cfg(feature = "rayon")]
pub(super) fn within<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    rayon::scope(|_| f())
}

#[cfg(not(feature = "rayon"))]
pub(super) fn within<T>(f: impl FnOnce() -> T) -> T {
    f()
}

/// Threads that [`join`] divides work among.
#[cfg(feature = "rayon")]
pub(super) fn count() -> usize {
    rayon::current_num_threads()
}

#[cfg(not(feature = "rayon"))]
pub(super) fn count() -> usize {
    1
}

/// Runs both functions, in parallel if there is a free thread.
#[cfg(feature = "rayon")]
pub(super) fn join(a: impl FnOnce() + Send, b: impl FnOnce() + Send) {
    rayon::join(a, b);
}

#[cfg(not(feature = "rayon"))]
pub(super) fn join(a: impl FnOnce(), b: impl FnOnce()) {
    a();
    b();
}
