// State slot `SLOT`.

var<private> old_SLOT: RAW;

fn fetch_SLOT(at: At) {
    old_SLOT = SLOT_buffer[at.state];
}

fn read_SLOT(at: At) -> vec4<f32> {
    if !LOADS_FIRST {
        fetch_SLOT(at);
    }
    return decode_FORMAT(old_SLOT);
}

fn write_SLOT(at: At, x: vec4<f32>) {
    if !UPDATES {
        return;
    }
    var next = encode_FORMAT(x);
    if STOCHASTIC {
        next = encode_FORMAT_stochastic(x, random(NTH));
    }
    SLOT_buffer[at.state] = KEEP(at, old_SLOT, next);
}
