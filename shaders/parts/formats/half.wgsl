// Common code of the 2-byte formats: two numbers per word, a vector in two words, and rounding in integers,
// which is the same on every device.

alias Half = vec2<u32>;

const MAGNITUDE = vec4<u32>(0x7fffffffu);
const INFINITE_F32 = vec4<u32>(0x7f800000u);

fn unpacked(raw: Half) -> vec4<u32> {
    return vec4<u32>(raw.x & 0xffffu, raw.x >> 16u, raw.y & 0xffffu, raw.y >> 16u);
}

fn packed(code: vec4<u32>) -> Half {
    return code.xz | (code.yw << vec2<u32>(16u));
}

fn sign_16(bits: vec4<u32>) -> vec4<u32> {
    return (bits >> vec4<u32>(16u)) & vec4<u32>(0x8000u);
}

// m / 2^shift, rounded to nearest, ties to even; m has at most 24 digits if the shift is above 16.
fn nearest(m: vec4<u32>, shift: vec4<u32>) -> vec4<u32> {
    let s = min(shift, vec4<u32>(25u));
    let one = vec4<u32>(1u);
    return (m + (one << (s - one)) - one + ((m >> s) & one)) >> s;
}

// m / 2^shift, rounded up with a probability equal to its fraction.
fn stochastic(m: vec4<u32>, shift: vec4<u32>, random: vec4<u32>) -> vec4<u32> {
    let one = vec4<u32>(1u);
    let most = min(shift, vec4<u32>(31u));
    // Probabilities below 2⁻³¹ are lost.
    let digits = m >> min(shift - most, vec4<u32>(31u));
    return (digits + (random & ((one << most) - one))) >> most;
}
