//! The generator of random numbers for stochastic rounding. `shaders/parts/lib/random.wgsl` has the same
//! hash.
//!
//! Each number is a hash of a counter: the step, the tensor, the element and the value within the element. So
//! the numbers do not depend on the order of computation, the place in memory or the device.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a hash keeps part of the bits on purpose"
)]

/// Returns 32 bits that stand for a tensor's name in the hash.
pub(crate) fn tensor_key(name: &str) -> u32 {
    // The length separates names that differ in trailing zero bytes only.
    let words = name.as_bytes().chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    words.fold(mixed(name.len() as u64), |hash, word| mixed(hash ^ word)) as u32
}

/// Returns 48 random bits for step `t`, in three parts of 16 bits, which an f32 holds exactly.
pub(crate) fn step_key(seed: u64, t: u64) -> [f32; 3] {
    // The inner round separates adjacent seeds: without it, seed 1 at step 0 would equal seed 0 at step 1.
    let bits = mixed(mixed(seed).wrapping_add(t));
    [bits, bits >> 16, bits >> 32].map(|part| f32::from(part as u16))
}

/// Returns the random numbers of four elements, for the `nth` value of each.
///
/// `key` is a [`step_key`], `tensor` a [`tensor_key`]; `four` counts vectors of four elements from the
/// tensor's first. The hash is PCG4D (Jarzynski and Olano, *Hash Functions for GPU Rendering*, 2020) with one
/// more fold at the end.
#[inline(always)]
pub(crate) fn random_four(key: [f32; 3], tensor: u32, four: u64, nth: u32) -> [u32; 4] {
    let [x, y, z] = key.map(|part| part as u32);
    let mut v = [four as u32, x | y << 16, z | nth << 16, tensor]
        .map(|v| v.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    let rounds = |v: &mut [u32; 4]| {
        v[0] = v[0].wrapping_add(v[1].wrapping_mul(v[3]));
        v[1] = v[1].wrapping_add(v[2].wrapping_mul(v[0]));
        v[2] = v[2].wrapping_add(v[0].wrapping_mul(v[1]));
        v[3] = v[3].wrapping_add(v[1].wrapping_mul(v[2]));
    };
    rounds(&mut v);
    v = v.map(|v| v ^ v >> 16);
    rounds(&mut v);
    v.map(|v| v ^ v >> 16)
}

/// Mixes the bits of a number by one round of SplitMix64 (Steele, Lea and Flood, 2014).
fn mixed(x: u64) -> u64 {
    let z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
