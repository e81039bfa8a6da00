// f32, four to a vector. Buffers are read as integers, so that lanes without an update keep their bits,
// including NaN payloads.

alias F32 = vec4<u32>;

fn decode_f32(raw: F32) -> vec4<f32> {
    return bitcast<vec4<f32>>(raw);
}

fn encode_f32(x: vec4<f32>) -> F32 {
    return bitcast<F32>(x);
}

// An f32 needs no rounding.
fn encode_f32_stochastic(x: vec4<f32>, random: vec4<u32>) -> F32 {
    return encode_f32(x);
}
