// For rules.

// w · x, and 0 where w is 0. What has no weight is not even multiplied by 0, for it may be infinite.
fn weighted(w: vec4<f32>, x: vec4<f32>) -> vec4<f32> {
    return select(vec4<f32>(0.0), w * x, on(w));
}

// w · next + (1 − w) · old, in the form that does not cancel; `rest` is 1 − w.
fn toward(old: vec4<f32>, next: vec4<f32>, w: vec4<f32>, rest: vec4<f32>) -> vec4<f32> {
    let d = next - old;
    return select(old + w * d, next - rest * d, w >= vec4<f32>(0.5));
}

// The sign, 0 of a zero, and of what is no number that itself.
fn sign_of(x: vec4<f32>) -> vec4<f32> {
    let nan = (bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
    return select(sign(x), x, nan);
}

// Where an option's scalar is set.
fn on(w: vec4<f32>) -> vec4<bool> {
    return w > vec4<f32>(0.0);
}
