// Gradients as the rule reads them: unscaled, and bounded by norm or by value.

var<private> old_g: RAW;

fn fetch_g(at: At) {
    old_g = load_g(at);
}

fn read_g(at: At) -> vec4<f32> {
    if !LOADS_FIRST {
        fetch_g(at);
    }
    zero_g(at);
    let g = decode_FORMAT(old_g);
    var x = g * factor;
    if SPLITS {
        x *= rest;
    }
    if BOUNDED {
        // `clamp` may return a number for a NaN.
        let bound = vec4<f32>(step_header.w);
        return select(clamp(x, -bound, bound), x, is_nan(g));
    }
    return x;
}
