// IEEE 754 binary16.

const NORMAL_F16 = vec4<u32>((127u - 14u) << 23u);
const REBIAS_F16 = vec4<u32>((127u - 15u) << 23u);

fn decode_f16(raw: Half) -> vec4<f32> {
    let code = unpacked(raw);
    let magnitude = code & vec4<u32>(0x7fffu);
    let wide = magnitude << vec4<u32>(13u);
    // 2⁻²⁴ each, exactly.
    let small = bitcast<vec4<u32>>(vec4<f32>(magnitude) * 0x1p-24f);
    let normal = select(small, wide + REBIAS_F16, magnitude >= vec4<u32>(0x400u));
    let special = INFINITE_F32 | (wide & vec4<u32>(0x7fe000u));
    let bits = select(normal, special, magnitude >= vec4<u32>(0x7c00u));
    return bitcast<vec4<f32>>(bits | ((code & vec4<u32>(0x8000u)) << vec4<u32>(16u)));
}

// The digits to round, and the number of digits that are lost.
struct F16Digits {
    m: vec4<u32>,
    shift: vec4<u32>,
}

fn digits_of_f16(magnitude: vec4<u32>) -> F16Digits {
    let is_normal = magnitude >= NORMAL_F16;
    // In units of 2⁻²⁴. A subnormal f32 rounds to zero, also with the leading digit that it gets here.
    let small = (magnitude & vec4<u32>(0x7fffffu)) | vec4<u32>(0x800000u);
    let shift = vec4<u32>(126u) - (magnitude >> vec4<u32>(23u));
    let digits = select(small, magnitude - REBIAS_F16, is_normal);
    return F16Digits(digits, select(shift, vec4<u32>(13u), is_normal));
}

fn encode_f16(x: vec4<f32>) -> Half {
    return packed(codes_f16(bitcast<vec4<u32>>(x)));
}

fn codes_f16(bits: vec4<u32>) -> vec4<u32> {
    let magnitude = bits & MAGNITUDE;
    let digits = digits_of_f16(magnitude);
    let code = min(nearest(digits.m, digits.shift), vec4<u32>(0x7c00u));
    let nan = vec4<u32>(0x7e00u) | ((bits >> vec4<u32>(13u)) & vec4<u32>(0x3ffu));
    return sign_16(bits) | select(code, nan, magnitude > INFINITE_F32);
}

fn encode_f16_stochastic(x: vec4<f32>, random: vec4<u32>) -> Half {
    let bits = bitcast<vec4<u32>>(x);
    let magnitude = bits & MAGNITUDE;
    let digits = digits_of_f16(magnitude);
    let code = sign_16(bits) | min(stochastic(digits.m, digits.shift, random), vec4<u32>(0x7bffu));
    return packed(select(code, codes_f16(bits), magnitude >= INFINITE_F32));
}
