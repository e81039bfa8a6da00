// bf16: the upper half of an f32.

fn decode_bf16(raw: Half) -> vec4<f32> {
    return bitcast<vec4<f32>>(unpacked(raw) << vec4<u32>(16u));
}

fn encode_bf16(x: vec4<f32>) -> Half {
    return packed(codes_bf16(bitcast<vec4<u32>>(x)));
}

fn codes_bf16(bits: vec4<u32>) -> vec4<u32> {
    let nan = (bits >> vec4<u32>(16u)) | vec4<u32>(0x40u);
    return select(nearest(bits, vec4<u32>(16u)), nan, (bits & MAGNITUDE) > INFINITE_F32);
}

fn encode_bf16_stochastic(x: vec4<f32>, random: vec4<u32>) -> Half {
    let bits = bitcast<vec4<u32>>(x);
    let magnitude = bits & MAGNITUDE;
    let code = sign_16(bits) | min(stochastic(magnitude, vec4<u32>(16u), random), vec4<u32>(0x7f7fu));
    return packed(select(code, codes_bf16(bits), magnitude >= INFINITE_F32));
}

// An f32 in two halves: the nearest bf16, with ties away from zero, and the lower half of the bits. Together
// they restore the f32 bit for bit, except a NaN's payload in the lower half.
fn bits_to_split(x: vec4<f32>) -> vec4<u32> {
    let bits = bitcast<vec4<u32>>(x);
    let nan = (bits & vec4<u32>(0xffff0000u)) | vec4<u32>(0x00400000u);
    return select(bits, nan, (bits & MAGNITUDE) > INFINITE_F32);
}

fn bf16_before_remainder(x: vec4<f32>) -> Half {
    return packed((bits_to_split(x) + vec4<u32>(0x8000u)) >> vec4<u32>(16u));
}

fn remainder_of_bf16(x: vec4<f32>) -> Half {
    return packed(bits_to_split(x) & vec4<u32>(0xffffu));
}

fn bf16_with_remainder(raw: Half, remainder: Half) -> vec4<f32> {
    let code = unpacked(raw);
    // A zero with this remainder comes from the caller, not from a kernel.
    let is_zero = (code & vec4<u32>(0x7fffu)) == vec4<u32>(0u);
    let rest = unpacked(remainder);
    let low = select(rest, vec4<u32>(0u), is_zero & (rest >= vec4<u32>(0x8000u)));
    let high = code - (low >> vec4<u32>(15u));
    return bitcast<vec4<f32>>((high << vec4<u32>(16u)) | low);
}
