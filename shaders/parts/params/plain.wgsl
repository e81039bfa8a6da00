// Parameters without a master copy: the rule reads the values that the caller reads.

var<private> old_p: RAW;
var<private> value_p: vec4<f32>;

fn fetch_p(at: At) {
    old_p = load_p(at);
}

fn take_p() -> vec4<f32> {
    value_p = decode_FORMAT(old_p);
    return value_p;
}

fn write_p(at: At, x: vec4<f32>) {
    if !UPDATES {
        return;
    }
    var next = encode_FORMAT(x);
    if STOCHASTIC {
        next = encode_FORMAT_stochastic(x, random(0u));
    }
    store_p(at, KEEP(at, old_p, next));
    let value = decode_FORMAT(next);
    average(at, value);
    measure(at, value);
}
