// State slot `SLOT`, in blocks with one scale each. A block's scale depends on all of its values, so they are
// stored after the update.

var<private> old_SLOT: RAW;
var<private> old_scale_SLOT: u32;
var<private> next_SLOT: vec4<f32>;

fn fetch_SLOT(at: At) {
    old_SLOT = SLOT_buffer[at.state];
    old_scale_SLOT = SLOT_buffer[scale_at(at)];
}

// A value that the rule does not write is encoded to its old code.
fn read_SLOT(at: At) -> vec4<f32> {
    if !LOADS_FIRST {
        fetch_SLOT(at);
    }
    next_SLOT = decode_FORMAT(old_SLOT, old_scale_SLOT);
    return next_SLOT;
}

fn write_SLOT(at: At, x: vec4<f32>) {
    next_SLOT = x;
}

fn share_peak_SLOT(at: At, own: bool, thread: u32) {
    peaks[ORDINAL * WORKGROUP_SIZE + thread] = select(0u, peak(own_bits(at, next_SLOT)), own);
}

fn store_SLOT(at: At, thread: u32) {
    let scale = scales[ORDINAL * BLOCKS + thread / BLOCK_VECTORS];
    var next = encode_FORMAT(next_SLOT, scale);
    if STOCHASTIC {
        next = encode_FORMAT_stochastic(next_SLOT, scale, random(NTH));
    }
    SLOT_buffer[at.state] = KEEP(at, old_SLOT, next);
    if at.state % BLOCK_VECTORS == 0u {
        SLOT_buffer[scale_at(at)] = scale;
    }
}
