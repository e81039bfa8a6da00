// Tiles of whole quads, each of one group.

struct Record {
    // First quad in the parameters and gradients.
    quad: u32,
    // First quad in the state.
    state: u32,
    quads: u32,
    group: u32,
}

// Where a thread's quad lies: in the parameters and gradients (before the header's offsets), and in the
// state.
struct At {
    quad: u32,
    state: u32,
}

fn place(record: Record, i: u32) -> At {
    return At(record.quad + i, record.state + i);
}

fn keep(at: At, old: vec4<u32>, next: vec4<u32>) -> vec4<u32> {
    return next;
}

fn keep_half(at: At, old: vec2<u32>, next: vec2<u32>) -> vec2<u32> {
    return next;
}

fn keep_codes(at: At, old: u32, next: u32) -> u32 {
    return next;
}
