// Segments with first and last vectors that several groups or padding may share.

struct Segment {
    // First vector in the parameters and gradients.
    vector: u32,
    // First vector in the state.
    state: u32,
    vectors: u32,
    // The group of every lane of the vectors between the first and the last.
    group: u32,
    // The groups of the lanes of the first and of the last vector, 16 bits each, NONE for padding. A lone
    // vector is the last.
    first: vec2<u32>,
    last: vec2<u32>,
}

const NONE = 0xffffu;

// The place of a thread's vector: in the parameters and gradients (before the header's offsets), and in the
// state.
struct At {
    vector: u32,
    state: u32,
    // The group of each lane.
    lanes: vec4<u32>,
}

fn place(segment: Segment, i: u32) -> At {
    let inner = vec2<u32>(segment.group * 0x10001u);
    let lanes = select(select(inner, segment.first, i == 0u), segment.last, i == segment.vectors - 1u);
    let low = lanes & vec2<u32>(0xffffu);
    let high = lanes >> vec2<u32>(16u);
    return At(segment.vector + i, segment.state + i, vec4<u32>(low.x, high.x, low.y, high.y));
}

// The bits of a vector, 0 in the lanes of padding.
fn own_bits(at: At, x: vec4<f32>) -> vec4<u32> {
    return select(vec4<u32>(0u), bitcast<vec4<u32>>(x), at.lanes != vec4<u32>(NONE));
}

// `next`, and `old` in the lanes of padding.
fn keep_f32(at: At, old: vec4<u32>, next: vec4<u32>) -> vec4<u32> {
    return select(old, next, at.lanes != vec4<u32>(NONE));
}

// `keep_f32` for lanes of 2 bytes, two to a word.
fn keep_half(at: At, old: vec2<u32>, next: vec2<u32>) -> vec2<u32> {
    let own = select(vec4<u32>(0u), vec4<u32>(0xffffu), at.lanes != vec4<u32>(NONE));
    let mask = own.xz | (own.yw << vec2<u32>(16u));
    return (old & ~mask) | (next & mask);
}

// `keep_f32` for codes, four to a word.
fn keep_codes(at: At, old: u32, next: u32) -> u32 {
    let bytes = vec4<u32>(0xffu, 0xff00u, 0xff0000u, 0xff000000u);
    let own = select(vec4<u32>(0u), bytes, at.lanes != vec4<u32>(NONE));
    let mask = own.x | own.y | own.z | own.w;
    return (old & ~mask) | (next & mask);
}
