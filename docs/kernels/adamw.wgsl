// ==== rules/adam.wgsl ====

// Adam with L2 or decoupled decay, and AMSGrad; the bias correction of the root is folded into step_size and
// eps.

fn update(s: Scalars, at: At) {
    let p = read_p(at);
    let d = s.sign * read_g(at) + weighted(s.weight_decay, p);
    let m = toward(read_exp_avg(at), d, s.one_minus_beta1, s.beta1);
    write_exp_avg(at, m);
    let v = s.beta2 * read_exp_avg_sq(at) + s.one_minus_beta2 * d * d;
    write_exp_avg_sq(at, v);
    var w = v;
    if KEEPS_MAX_EXP_AVG_SQ {
        let amsgrad = on(s.max_scale);
        let top = read_max_exp_avg_sq(at);
        w = select(v, max(top, s.max_scale * v), amsgrad);
        write_max_exp_avg_sq(at, select(top, w, amsgrad));
    }
    write_p(at, p - (weighted(s.decay, p) + s.step_size * m / (sqrt(w) + s.eps)));
}

// ==== kernels/step.wgsl ====

// The update of a step. Each thread finds its vector of four elements and calls the rule's update.
//
// A dispatch has a table of segments. A segment is a run of adjacent vectors in the parameters, in the
// gradients and in the state. It takes 1 << shift workgroups, so a workgroup finds its segment by a shift.

@compute @workgroup_size(WORKGROUP_SIZE)
fn step(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let number = workgroup.y * table.header.stride + workgroup.x;
    // The last row of a 2-D dispatch may reach past the table; those workgroups find i >= vectors below.
    let nth = select(min(number >> table.header.shift, table.header.segments - 1u), 0u, SINGLE);
    let segment = segment_at(nth);
    let i = (number - (nth << table.header.shift)) * WORKGROUP_SIZE + thread;
    let at = place(segment, i);
    // Before the branch: software Vulkan reads uniform data once for all lanes only outside of one.
    let s = scalars(segment, at);
    prepare(s);
    locate(nth, i);
    if i < segment.vectors {
        update_vector(s, at);
    }
    store_blocks(at, i < segment.vectors && !skipped(), thread);
}

// ==== parts/lib/update.wgsl ====

// The frame around the rule's update of one vector.

// The first vector of the step's scalars: factor of the gradients, whether the step is skipped, and the bound
// of the gradients in the last component.
var<private> step_header: vec4<f32>;
// The factor of the vector's gradients, and the rest of a factor that is not a normal number.
var<private> factor: Number;
var<private> rest: Number;

fn prepare(s: Scalars) {
    step_header = step_scalars[0];
    prepare_factor(s);
    prepare_average(s);
    prepare_random();
}

// A factor beyond the normal numbers is sent with a negative sign, times 2¹⁰⁰ if it is small or 2⁻¹⁰⁰ if it
// is large.
fn split_factor(x: Number) {
    factor = x;
    if SPLITS {
        factor = abs(x);
        let beyond = select(Number(0x1p100f), Number(0x1p-100f), factor < Number(1.0));
        rest = select(Number(1.0), beyond, x < Number(0.0));
    }
}

fn skipped() -> bool {
    return SKIPS && step_header.y > 0.0;
}

fn read_p(at: At) -> vec4<f32> {
    if !LOADS_FIRST {
        fetch_p(at);
    }
    return take_p();
}

fn update_vector(s: Scalars, at: At) {
    if skipped() {
        rest_g(at);
        rest_norms(at);
    } else {
        if LOADS_FIRST {
            fetch(at);
        }
        update(s, at);
    }
}

// ==== parts/params/plain.wgsl ====

// Parameters without a master copy: the rule reads the values that the caller reads.

var<private> old_p: F32;
var<private> value_p: vec4<f32>;

fn fetch_p(at: At) {
    old_p = load_p(at);
}

fn take_p() -> vec4<f32> {
    value_p = decode_f32(old_p);
    return value_p;
}

fn write_p(at: At, x: vec4<f32>) {
    if !UPDATES {
        return;
    }
    var next = encode_f32(x);
    if STOCHASTIC {
        next = encode_f32_stochastic(x, random(0u));
    }
    store_p(at, keep_f32(at, old_p, next));
    let value = decode_f32(next);
    average(at, value);
    measure(at, value);
}

// ==== parts/grads/read.wgsl ====

// Gradients as the rule reads them: unscaled, and bounded by norm or by value.

var<private> old_g: F32;

fn fetch_g(at: At) {
    old_g = load_g(at);
}

fn read_g(at: At) -> vec4<f32> {
    if !LOADS_FIRST {
        fetch_g(at);
    }
    zero_g(at);
    let g = decode_f32(old_g);
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

// ==== parts/grads/kept.wgsl ====

// Gradients are not changed.

fn zero_g(at: At) {}

fn rest_g(at: At) {}

// ==== parts/slots/stored.wgsl ====

// State slot `exp_avg`.

var<private> old_exp_avg: F32;

fn fetch_exp_avg(at: At) {
    old_exp_avg = exp_avg_buffer[at.state];
}

fn read_exp_avg(at: At) -> vec4<f32> {
    if !LOADS_FIRST {
        fetch_exp_avg(at);
    }
    return decode_f32(old_exp_avg);
}

fn write_exp_avg(at: At, x: vec4<f32>) {
    if !UPDATES {
        return;
    }
    var next = encode_f32(x);
    if STOCHASTIC {
        next = encode_f32_stochastic(x, random(1u));
    }
    exp_avg_buffer[at.state] = keep_f32(at, old_exp_avg, next);
}

// ==== parts/slots/stored.wgsl ====

// State slot `exp_avg_sq`.

var<private> old_exp_avg_sq: F32;

fn fetch_exp_avg_sq(at: At) {
    old_exp_avg_sq = exp_avg_sq_buffer[at.state];
}

fn read_exp_avg_sq(at: At) -> vec4<f32> {
    if !LOADS_FIRST {
        fetch_exp_avg_sq(at);
    }
    return decode_f32(old_exp_avg_sq);
}

fn write_exp_avg_sq(at: At, x: vec4<f32>) {
    if !UPDATES {
        return;
    }
    var next = encode_f32(x);
    if STOCHASTIC {
        next = encode_f32_stochastic(x, random(2u));
    }
    exp_avg_sq_buffer[at.state] = keep_f32(at, old_exp_avg_sq, next);
}

// ==== parts/slots/dropped.wgsl ====

// State slot `max_exp_avg_sq`, which the hyperparameters do not need. It has no memory.

fn read_max_exp_avg_sq(at: At) -> vec4<f32> {
    return vec4<f32>();
}

fn write_max_exp_avg_sq(at: At, x: vec4<f32>) {}

// ==== parts/blocks/none.wgsl ====

// State without blocks is stored by the rule's writes.

fn store_blocks(at: At, own: bool, thread: u32) {}

// ==== parts/clip/all.wgsl ====

// All gradients have one factor: unscaling, times the clip of the global norm.

fn prepare_factor(s: Scalars) {
    split_factor(Number(step_header.x));
}

// ==== parts/ema/none.wgsl ====

// No average of the weights.

fn prepare_average(s: Scalars) {}

fn fetch_average(at: At) {}

fn average(at: At, x: vec4<f32>) {}

// ==== parts/update_norms/none.wgsl ====

// No norms of parameters and update.

fn measure(at: At, x: vec4<f32>) {}

fn rest_norms(at: At) {}

// ==== parts/load/vectors.wgsl ====

// Loads of `p`: one vector of the buffer.

fn load_p(at: At) -> F32 {
    return p_buffer[at.vector + table.header.p];
}

// ==== parts/store/vectors.wgsl ====

// Stores of `p`: one vector of the buffer. Lanes of padding hold their old bits.

fn store_p(at: At, next: F32) {
    p_buffer[at.vector + table.header.p] = next;
}

// ==== parts/load/vectors.wgsl ====

// Loads of `g`: one vector of the buffer.

fn load_g(at: At) -> F32 {
    return g_buffer[at.vector + table.header.g];
}

// ==== parts/segments/aligned.wgsl ====

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

// ==== parts/lib/table.wgsl ====

// The header before the segments in a table.

struct Header {
    // Segments in the table.
    segments: u32,
    // A segment takes 1 << shift workgroups.
    shift: u32,
    // Workgroups in a row of the 2-D dispatch.
    stride: u32,
    // Position of vector 0 in the bound parameters and gradients: in vectors, or in elements if they are
    // loaded one by one.
    p: u32,
    g: u32,
    // Last element of the bound parameters and gradients, if they are loaded one by one.
    p_last: u32,
    g_last: u32,
    // Position of the first partial sum of this reduction.
    partials: u32,
    // Position of the first scale of state in blocks, in words.
    scales: u32,
}

// ==== parts/random/none.wgsl ====

// No value is rounded stochastically.

fn prepare_random() {}

fn locate(segment: u32, i: u32) {}

fn random(nth: u32) -> vec4<u32> {
    // Not `vec4<u32>()`: naga 30 writes the zero of a type once for each of its names in HLSL, F32 being one.
    return vec4(0u);
}

// ==== parts/formats/f32.wgsl ====

// f32, four to a vector. Buffers are read as integers, so that lanes without an update keep their bits,
// including NaN payloads.

alias F32 = vec4<u32>;

fn decode_f32(raw: F32) -> vec4<f32> {
    return bitcast<vec4<f32>>(raw);
}

fn encode_f32(x: vec4<f32>) -> F32 {
    return bitcast<F32>(x);
}

// An f32 needs no rounding.
fn encode_f32_stochastic(x: vec4<f32>, random: vec4<u32>) -> F32 {
    return encode_f32(x);
}

// ==== parts/lib/arithmetic.wgsl ====

// Helpers for rules. A scalar is a `Number`: an f32, or a vec4<f32> if the lanes of a vector may belong to
// several groups. A `Choice` is a bool, or a vec4<bool> in the same case.

// Whether an option's scalar is set.
fn on(w: Number) -> Choice {
    return w > Number(0.0);
}

// w · x, and 0 where w is 0 even if x is infinite.
fn weighted(w: Number, x: vec4<f32>) -> vec4<f32> {
    return select(vec4<f32>(0.0), w * x, on(w));
}

// w · next + (1 − w) · old, in the form without cancellation; `rest` is 1 − w.
fn toward(old: vec4<f32>, next: vec4<f32>, w: Number, rest: Number) -> vec4<f32> {
    let d = next - old;
    return select(old + w * d, next - rest * d, w >= Number(0.5));
}

fn is_nan(x: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
}

// The sign: 0 for a zero, and NaN for a NaN.
fn sign_of(x: vec4<f32>) -> vec4<f32> {
    return select(sign(x), x, is_nan(x));
}

// ==== declarations ====

const SINGLE = true;
const UPDATES = true;
const LOADS_FIRST = true;
const STOCHASTIC = false;
const BOUNDED = false;
const SPLITS = false;
const SKIPS = false;
const KEEPS_EXP_AVG = true;
const KEEPS_EXP_AVG_SQ = true;
const KEEPS_MAX_EXP_AVG_SQ = false;
const WORKGROUP_SIZE = 256u;
const STREAM = 256u;
const ALIGNED = true;

struct Table {
    @size(48) header: Header,
    segments: array<Segment, 4093>,
}

@group(0) @binding(0) var<uniform> table: Table;

fn segment_at(i: u32) -> Segment {
    return table.segments[i];
}

@group(0) @binding(1) var<storage, read_write> p_buffer: array<F32>;
@group(0) @binding(2) var<storage, read> g_buffer: array<F32>;
@group(0) @binding(3) var<storage, read_write> exp_avg_buffer: array<F32>;
@group(0) @binding(4) var<storage, read_write> exp_avg_sq_buffer: array<F32>;

struct GroupScalars {
    sign: f32,
    weight_decay: f32,
    decay: f32,
    one_minus_beta1: f32,
    beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    step_size: f32,
    eps: f32,
    max_scale: f32,
}

@group(1) @binding(0) var<uniform> step_scalars: array<vec4<f32>, 4>;

fn scalars_of(group: u32) -> GroupScalars {
    let v0 = step_scalars[1];
    let v1 = step_scalars[2];
    let v2 = step_scalars[3];
    return GroupScalars(v0.x, v0.y, v0.z, v0.w, v1.x, v1.y, v1.z, v1.w, v2.x, v2.y);
}

alias Scalars = GroupScalars;
alias Number = f32;
alias Choice = bool;

fn scalars(segment: Segment, at: At) -> Scalars {
    return scalars_of(segment.group);
}

fn fetch(at: At) {
    fetch_p(at);
    fetch_g(at);
    fetch_exp_avg(at);
    fetch_exp_avg_sq(at);
    fetch_average(at);
}
