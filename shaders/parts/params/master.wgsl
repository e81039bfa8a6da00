// Parameters with an f32 master copy, which the rule reads and writes.

var<private> old_p: RAW;
var<private> old_master: F32;
var<private> value_p: vec4<f32>;

fn fetch_p(at: At) {
    old_p = load_p(at);
    old_master = master_buffer[at.state];
}

// State starts at zero. A master of zero means not initialized, and the stored parameter is used instead.
// Both agree if the true value is zero.
fn take_p() -> vec4<f32> {
    value_p = select(decode_f32(old_master), decode_FORMAT(old_p), old_master == F32());
    return value_p;
}

fn write_p(at: At, x: vec4<f32>) {
    if !UPDATES {
        return;
    }
    store_p(at, KEEP(at, old_p, encode_FORMAT(x)));
    master_buffer[at.state] = keep_f32(at, old_master, encode_f32(x));
    average(at, x);
    measure(at, x);
}
