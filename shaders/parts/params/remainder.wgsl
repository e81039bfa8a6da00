// Parameters in bf16 with the 16 bits that they lack of an f32, which the rule reads and writes.

var<private> old_p: Half;
var<private> old_remainder: Half;
var<private> value_p: vec4<f32>;

fn fetch_p(at: At) {
    old_p = load_p(at);
    old_remainder = remainder_buffer[at.state];
}

fn take_p() -> vec4<f32> {
    value_p = bf16_with_remainder(old_p, old_remainder);
    return value_p;
}

fn write_p(at: At, x: vec4<f32>) {
    if !UPDATES {
        return;
    }
    store_p(at, keep_half(at, old_p, bf16_before_remainder(x)));
    remainder_buffer[at.state] = keep_half(at, old_remainder, remainder_of_bf16(x));
    average(at, x);
    measure(at, x);
}
