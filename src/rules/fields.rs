//! Structs with fields of one type: the scalars and the state of a rule.

use core::fmt::Debug;

/// A struct with fields of one type, which code can name and also visit by index.
///
/// [`fields!`](crate::fields) implements it.
pub trait Fields<T>: Copy + Debug + Send + Sync {
    /// The fields' names, in order.
    const NAMES: &'static [&'static str];
    /// Builds the struct from its fields' values; `value` is called in order.
    fn from_fn(value: impl FnMut(usize) -> T) -> Self;
    /// The value of field `i`.
    fn get(&self, i: usize) -> T;
}

/// Declares a generic struct that implements [`Fields`](crate::rules::Fields).
///
/// ```
/// wgpu_optim::fields! {
///     /// Scalars of a step.
///     pub struct DescentScalars {
///         /// Learning rate.
///         lr,
///     }
/// }
/// use wgpu_optim::rules::Fields;
/// assert_eq!(<DescentScalars<f32> as Fields<f32>>::NAMES, ["lr"]);
/// ```
#[macro_export]
macro_rules! fields {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$doc:meta])* $field:ident),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq)]
        $vis struct $name<T> { $($(#[$doc])* $vis $field: T),+ }

        impl<T: Copy + ::core::fmt::Debug + Send + Sync> $crate::rules::Fields<T> for $name<T> {
            const NAMES: &'static [&'static str] = &[$(stringify!($field)),+];
            #[inline(always)]
            fn from_fn(mut value: impl FnMut(usize) -> T) -> Self {
                let mut i = 0..;
                Self { $($field: value(i.next().unwrap_or_default())),+ }
            }
            #[inline(always)]
            fn get(&self, i: usize) -> T {
                [$(self.$field),+][i]
            }
        }
    };
}

fields! {
    /// State of rules with a first and a second moment.
    pub struct MomentsState {
        /// Running mean of the gradient.
        exp_avg,
        /// Running mean of a square.
        exp_avg_sq,
    }
}

impl<T> Fields<T> for () {
    const NAMES: &'static [&'static str] = &[];
    fn from_fn(_: impl FnMut(usize) -> T) -> Self {}
    fn get(&self, _: usize) -> T {
        unreachable!("there are no fields")
    }
}
