// The exponential moving average of the weights.

var<private> old_ema: F32;
var<private> average_weight: Number;

fn prepare_average(s: Scalars) {
    average_weight = s.average_weight;
}

fn fetch_average(at: At) {
    old_ema = ema_buffer[at.state];
}

fn average(at: At, x: vec4<f32>) {
    if !LOADS_FIRST {
        fetch_average(at);
    }
    let e = decode_f32(old_ema);
    ema_buffer[at.state] = keep_f32(at, old_ema, encode_f32(e + average_weight * (x - e)));
}
