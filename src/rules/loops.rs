//! A rule's arithmetic compiled into loops over slices: the only code of the CPU half that is generic over
//! rules.

use super::fields::Fields;
use super::rule::CpuRule;
use crate::float::{Float, Scaled};
use core::fmt;
use multiversion::multiversion;

/// The most state slots that a rule may have on the CPU.
pub(crate) const MAX_SLOTS: usize = 8;
/// Elements per chunk: two AVX-512 registers, or more registers of other sets.
pub(crate) const CHUNK: usize = 32;

/// The constants of a loop over one tensor's elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Constants<'a> {
    /// The rule's scalars, in the order of its fields.
    pub(crate) scalars: &'a [f32],
    /// Factor of the gradients.
    pub(crate) factor: f32,
    /// Bound of each gradient after multiplication by the factor.
    pub(crate) bound: f32,
}

/// A factor of gradients as the product of two normal numbers. The product may be beyond the normal numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factor {
    pub(crate) factor: f32,
    /// A power of two that gradients are multiplied by before the loop: 1 for a normal factor.
    pub(crate) power: f32,
}

impl Factor {
    pub(crate) fn new(factor: f64) -> Self {
        let beyond = 100f64.exp2();
        let power = match factor {
            x if x > f64::from(f32::MAX) => beyond,
            x if x < f64::from(f32::MIN_POSITIVE) && x > 0.0 => 1.0 / beyond,
            _ => 1.0,
        };
        Self { factor: f32::from_f64(factor / power), power: f32::from_f64(power) }
    }
}

impl Constants<'_> {
    /// A gradient as the rule gets it. NaN stays NaN.
    #[inline(always)]
    fn prepared(self, g: f32) -> f32 {
        let g = g * self.factor;
        let g = if g > self.bound { self.bound } else { g };
        if g < -self.bound { -self.bound } else { g }
    }
}

/// Updates whole chunks of parameters and state in place. A slot that is not kept has no elements.
pub(crate) type Update = fn(Constants<'_>, &mut [f32], &[f32], [&mut [f32]; MAX_SLOTS]);
/// Writes the update directions of whole chunks to the last slice. A slot that is not kept has no elements.
pub(crate) type Directions = fn(Constants<'_>, &[f32], &[f32], &[&[f32]], &mut [f32]);

/// A rule's loops. The first loop of each pair is compiled for the target's plain instructions. The second
/// chooses the processor's best instructions. Both give the same bits.
pub struct Loops {
    pub(crate) update: [Update; 2],
    pub(crate) directions: [Directions; 2],
    pub(crate) trust_ratio: fn(&[f32], f32, f32) -> f32,
    pub(crate) exact: Arithmetic<f64>,
    pub(crate) scaled: Arithmetic<Scaled>,
}

impl fmt::Debug for Loops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Loops")
    }
}

/// Scalars, parameters, gradients, state.
pub(crate) type UpdateAll<T> = fn(&[T], &mut [T], &[T], &mut [&mut [T]]);
/// Scalars, parameters, gradients, state; the update directions go to the last slice.
pub(crate) type DirectionsOfAll<T> = fn(&[T], &[T], &[T], &[&[T]], &mut [T]);

/// A rule in the arithmetic of `T`, for references: plain loops over the elements of one tensor. A slot that
/// is not kept has no elements.
pub(crate) struct Arithmetic<T> {
    pub(crate) update: UpdateAll<T>,
    pub(crate) directions: DirectionsOfAll<T>,
    /// Scalars, norm of the parameters, norm of the update directions.
    pub(crate) trust_ratio: fn(&[T], T, T) -> T,
}

/// The loops of a rule's type.
pub(crate) struct Of<R>(core::marker::PhantomData<R>);

impl<R: CpuRule> Of<R> {
    pub(crate) const LOOPS: &'static Loops = &Loops {
        update: [update_plainly::<R>, update::<R>],
        // Only the norms of a layer-wise rule need them.
        directions: if R::TRUST_RATIO.is_some() {
            [directions_plainly::<R>, directions::<R>]
        } else {
            [|_, _, _, _, _| (), |_, _, _, _, _| ()]
        },
        trust_ratio: trust_ratio::<R, f32>,
        exact: Self::arithmetic(),
        scaled: Self::arithmetic(),
    };

    const fn arithmetic<T: Float>() -> Arithmetic<T> {
        Arithmetic {
            update: update_all::<R, T>,
            directions: directions_of_all::<R, T>,
            trust_ratio: trust_ratio::<R, T>,
        }
    }
}

/// Has the loops of a built-in rule compiled in this crate and in no other.
macro_rules! compiled_here {
    () => {
        const LEAVES_DROPPED: bool = true;

        #[inline(never)]
        fn loops() -> &'static $crate::rules::loops::Loops {
            $crate::rules::loops::Of::<Self>::LOOPS
        }
    };
}
pub(super) use compiled_here;

#[inline(always)]
fn scalars<R: CpuRule, T: Float>(scalars: &[T]) -> R::Scalars<T> {
    R::Scalars::<T>::from_fn(|i| scalars[i])
}

#[inline(always)]
fn slots<R: CpuRule>() -> usize {
    <R::State<f32> as Fields<f32>>::NAMES.len()
}

/// Defines the loops of an update with one parameter for each slot. A compiler knows that parameters do not
/// overlap, so it updates one vector after the other, in place.
macro_rules! updates {
    ($($slot:ident $nth:literal),+) => {
        /// Updates whole chunks. A slot that is not kept has one chunk of zeros.
        #[inline(always)]
        #[allow(clippy::too_many_arguments, reason = "one for each slot")]
        fn chunks<R: CpuRule>(constants: Constants<'_>, p: &mut [f32], g: &[f32], $($slot: &mut [f32]),+) {
            let (scalars, slots) = (scalars::<R, f32>(constants.scalars), slots::<R>());
            let kept = [$(p.len() == $slot.len()),+];
            $(let $slot = $slot.as_chunks_mut::<CHUNK>().0;)+
            let chunks = p.as_chunks_mut::<CHUNK>().0.iter_mut().zip(g.as_chunks::<CHUNK>().0);
            for (nth, (p, g)) in chunks.enumerate() {
                let at = kept.map(|kept| if kept { nth } else { 0 });
                for i in 0..CHUNK {
                    let mut state = R::State::<f32>::from_fn(|slot| match slot {
                        $($nth => $slot[at[$nth]][i],)+
                        _ => unreachable!("rules with more slots are refused"),
                    });
                    R::update(&scalars, &mut p[i], constants.prepared(g[i]), &mut state);
                    $(if $nth < slots {
                        $slot[at[$nth]][i] = state.get($nth);
                    })+
                }
            }
        }

        #[inline(never)]
        #[allow(clippy::too_many_arguments, reason = "one for each slot")]
        fn plain<R: CpuRule>(constants: Constants<'_>, p: &mut [f32], g: &[f32], $($slot: &mut [f32]),+) {
            chunks::<R>(constants, p, g, $($slot),+);
        }

        #[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2", "x86_64+avx2"))]
        #[allow(clippy::too_many_arguments, reason = "one for each slot")]
        fn best<R: CpuRule>(constants: Constants<'_>, p: &mut [f32], g: &[f32], $($slot: &mut [f32]),+) {
            chunks::<R>(constants, p, g, $($slot),+);
        }

        fn update_plainly<R: CpuRule>(
            constants: Constants<'_>,
            p: &mut [f32],
            g: &[f32],
            state: [&mut [f32]; MAX_SLOTS],
        ) {
            in_runs::<R>(p, g, state, |p, g, [$($slot),+]| plain::<R>(constants, p, g, $($slot),+));
        }

        fn update<R: CpuRule>(
            constants: Constants<'_>,
            p: &mut [f32],
            g: &[f32],
            state: [&mut [f32]; MAX_SLOTS],
        ) {
            in_runs::<R>(p, g, state, |p, g, [$($slot),+]| best::<R>(constants, p, g, $($slot),+));
        }
    };
}
updates!(s0 0, s1 1, s2 2, s3 3, s4 4, s5 5, s6 6, s7 7);

/// Hands an update its elements, with one chunk of zeros in place of each slot that is not kept. The next run
/// does not read the values that an update writes to that chunk.
#[inline(always)]
fn in_runs<R: CpuRule>(
    p: &mut [f32],
    g: &[f32],
    mut state: [&mut [f32]; MAX_SLOTS],
    update: impl Fn(&mut [f32], &[f32], [&mut [f32]; MAX_SLOTS]),
) {
    let slots = slots::<R>();
    let whole = R::LEAVES_DROPPED || state[..slots].iter().all(|slot| !slot.is_empty());
    let run = if whole { p.len().max(CHUNK) } else { CHUNK };
    for (nth, (p, g)) in p.chunks_mut(run).zip(g.chunks(run)).enumerate() {
        let mut dropped = [[0.0; CHUNK]; MAX_SLOTS];
        let mut all: [&mut [f32]; MAX_SLOTS] = Default::default();
        for ((to, slot), zeros) in all.iter_mut().zip(&mut state).zip(&mut dropped).take(slots) {
            *to = if slot.is_empty() { zeros } else { &mut slot[nth * run..][..p.len()] };
        }
        update(p, g, all);
    }
}

#[inline(always)]
fn directions_plainly<R: CpuRule>(
    constants: Constants<'_>,
    p: &[f32],
    g: &[f32],
    state: &[&[f32]],
    to: &mut [f32],
) {
    let (scalars, slots) = (scalars::<R, f32>(constants.scalars), slots::<R>());
    let state: [&[[f32; CHUNK]]; MAX_SLOTS] =
        core::array::from_fn(|slot| state.get(slot).map_or(&[][..], |x| x.as_chunks().0));
    let chunks = p.as_chunks::<CHUNK>().0.iter().zip(g.as_chunks::<CHUNK>().0);
    for (nth, (all, (p, g))) in to.as_chunks_mut::<CHUNK>().0.iter_mut().zip(chunks).enumerate() {
        let mut own = [[0.0; CHUNK]; MAX_SLOTS];
        for (own, x) in own.iter_mut().zip(&state).take(slots) {
            if let Some(x) = x.get(nth) {
                *own = *x;
            }
        }
        for i in 0..CHUNK {
            let state = R::State::<f32>::from_fn(|slot| own[slot][i]);
            all[i] = R::direction(&scalars, p[i], constants.prepared(g[i]), &state);
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+avx2", "x86_64+avx2"))]
fn directions<R: CpuRule>(constants: Constants<'_>, p: &[f32], g: &[f32], state: &[&[f32]], to: &mut [f32]) {
    directions_plainly::<R>(constants, p, g, state, to);
}

fn trust_ratio<R: CpuRule, T: Float>(s: &[T], p_norm: T, u_norm: T) -> T {
    R::trust_ratio(&scalars::<R, T>(s), p_norm, u_norm)
}

fn update_all<R: CpuRule, T: Float>(s: &[T], p: &mut [T], g: &[T], state: &mut [&mut [T]]) {
    let scalars = scalars::<R, T>(s);
    for (i, (p, &g)) in p.iter_mut().zip(g).enumerate() {
        let mut own = R::State::<T>::from_fn(|slot| state[slot].get(i).copied().unwrap_or(T::ZERO));
        R::update(&scalars, p, g, &mut own);
        for (slot, values) in state.iter_mut().enumerate() {
            if let Some(value) = values.get_mut(i) {
                *value = own.get(slot);
            }
        }
    }
}

fn directions_of_all<R: CpuRule, T: Float>(s: &[T], p: &[T], g: &[T], state: &[&[T]], to: &mut [T]) {
    let scalars = scalars::<R, T>(s);
    for (i, ((to, &p), &g)) in to.iter_mut().zip(p).zip(g).enumerate() {
        let own = R::State::<T>::from_fn(|slot| state[slot].get(i).copied().unwrap_or(T::ZERO));
        *to = R::direction(&scalars, p, g, &own);
    }
}

impl<T: Float> Arithmetic<T> {
    /// `scalars` with the trust ratio of a tensor in field `field`.
    pub(crate) fn set_trust_ratio(&self, scalars: &mut [T], field: usize, p: &[T], g: &[T], state: &[&[T]]) {
        let mut directions = vec![T::ZERO; p.len()];
        (self.directions)(scalars, p, g, state, &mut directions);
        let (p_norm, u_norm) = (T::norm(p.iter().copied()), T::norm(directions.iter().copied()));
        scalars[field] = (self.trust_ratio)(scalars, p_norm, u_norm);
    }
}
