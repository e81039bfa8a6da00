//! Integers in narrower types.
//!
//! The caller has bounded each of them, so a number that does not fit is a bug of this crate. It panics: a
//! number that lost its upper digits would index other elements.

/// The number as an index.
#[track_caller]
pub(crate) fn to_usize(n: u64) -> usize {
    usize::try_from(n).expect("the number counts what lies in memory")
}

/// The number as a word of the device.
#[cfg(any(feature = "gpu", feature = "checkpoint"))]
#[track_caller]
pub(crate) fn to_u32<N: TryInto<u32, Error: core::fmt::Debug>>(n: N) -> u32 {
    n.try_into().expect("the number is bounded by a limit of the device or of a file")
}
