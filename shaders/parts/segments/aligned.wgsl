// Segments of whole vectors of one group.

struct Segment {
    // First vector in the parameters and gradients.
    vector: u32,
    // First vector in the state.
    state: u32,
    vectors: u32,
    group: u32,
}

// The place of a thread's vector: in the parameters and gradients (before the header's offsets), and in the
// state.
struct At {
    vector: u32,
    state: u32,
}

fn place(segment: Segment, i: u32) -> At {
    return At(segment.vector + i, segment.state + i);
}

// The bits of a vector, 0 in the lanes of padding.
fn own_bits(at: At, x: vec4<f32>) -> vec4<u32> {
    return bitcast<vec4<u32>>(x);
}

// `next`, and `old` in the lanes of padding.
fn keep_f32(at: At, old: vec4<u32>, next: vec4<u32>) -> vec4<u32> {
    return next;
}

fn keep_half(at: At, old: vec2<u32>, next: vec2<u32>) -> vec2<u32> {
    return next;
}

fn keep_codes(at: At, old: u32, next: u32) -> u32 {
    return next;
}
