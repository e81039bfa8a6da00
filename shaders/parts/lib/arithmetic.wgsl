// Helpers for rules. A scalar is a `Number`: an f32, or a vec4<f32> if the lanes of a vector may belong to
// several groups. A `Choice` is a bool, or a vec4<bool> in the same case.

// Whether an option's scalar is set.
fn on(w: Number) -> Choice {
    return w > Number(0.0);
}

// w · x, and 0 where w is 0 even if x is infinite.
fn weighted(w: Number, x: vec4<f32>) -> vec4<f32> {
    return select(vec4<f32>(0.0), w * x, on(w));
}

// w · next + (1 − w) · old, in the form without cancellation; `rest` is 1 − w.
fn toward(old: vec4<f32>, next: vec4<f32>, w: Number, rest: Number) -> vec4<f32> {
    let d = next - old;
    return select(old + w * d, next - rest * d, w >= Number(0.5));
}

fn is_nan(x: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
}

// The sign: 0 for a zero, and NaN for a NaN.
fn sign_of(x: vec4<f32>) -> vec4<f32> {
    return select(sign(x), x, is_nan(x));
}
