// Two f16 numbers in a u32, in integers: WGSL leaves the rounding of pack2x16float and its result for numbers
// out of range open. pack2x16float and unpack2x16float may flush subnormal numbers.

// Rounds to nearest, ties to even, and to infinity from 65520 on. NaN becomes infinite too.
fn pack(x: vec2<f32>) -> u32 {
    let bits = bitcast<vec2<u32>>(x);
    let magnitude = bits & vec2<u32>(0x7fffffffu);
    // Below 2⁻¹⁴ a multiple of 2⁻²⁴; from there on the bits of f32 with another bias of the exponent.
    let subnormal = magnitude < vec2<u32>(113u << 23u);
    let significand = (magnitude & vec2<u32>(0x7fffffu)) | vec2<u32>(0x800000u);
    let digits = select(magnitude - vec2<u32>(112u << 23u), significand, subnormal);
    let lost = select(vec2<u32>(13u), min(126u - (magnitude >> vec2<u32>(23u)), vec2<u32>(25u)), subnormal);
    let odd = (digits >> lost) & vec2<u32>(1u);
    let rounded = (digits + (vec2<u32>(1u) << (lost - 1u)) - 1u + odd) >> lost;
    let half = select(vec2<u32>(0x7c00u), rounded, magnitude < vec2<u32>(0x477ff000u));
    let signed = half | ((bits >> vec2<u32>(16u)) & vec2<u32>(0x8000u));
    return signed.x | (signed.y << 16u);
}

fn halves(packed: u32) -> vec2<u32> {
    return vec2<u32>(packed & 0xffffu, packed >> 16u);
}

// The numbers, if they are finite.
fn unpack(packed: u32) -> vec2<f32> {
    let half = halves(packed);
    let magnitude = half & vec2<u32>(0x7fffu);
    let normal = bitcast<vec2<f32>>((magnitude << vec2<u32>(13u)) + vec2<u32>(112u << 23u));
    let value = select(normal, vec2<f32>(magnitude) * 0x1p-24f, magnitude < vec2<u32>(0x400u));
    return select(value, -value, half > vec2<u32>(0x7fffu));
}

fn infinite(packed: u32) -> vec2<bool> {
    return (halves(packed) & vec2<u32>(0x7c00u)) == vec2<u32>(0x7c00u);
}
