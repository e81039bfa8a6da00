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

// ==== parts/params/remainder.wgsl ====

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

// ==== parts/grads/read.wgsl ====

// Gradients as the rule reads them: unscaled, and bounded by norm or by value.

var<private> old_g: Half;

fn fetch_g(at: At) {
    old_g = load_g(at);
}

fn read_g(at: At) -> vec4<f32> {
    if !LOADS_FIRST {
        fetch_g(at);
    }
    zero_g(at);
    let g = decode_bf16(old_g);
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

// ==== parts/grads/zeroed.wgsl ====

// Gradients are set to zero after they are read, also in a skipped step.

fn zero_g(at: At) {
    store_g(at, keep_half(at, old_g, Half()));
}

fn rest_g(at: At) {
    fetch_g(at);
    zero_g(at);
}

// ==== parts/slots/block.wgsl ====

// State slot `exp_avg`, in blocks with one scale each. A block's scale depends on all of its values, so they are
// stored after the update.

var<private> old_exp_avg: u32;
var<private> old_scale_exp_avg: u32;
var<private> next_exp_avg: vec4<f32>;

fn fetch_exp_avg(at: At) {
    old_exp_avg = exp_avg_buffer[at.state];
    old_scale_exp_avg = exp_avg_buffer[scale_at(at)];
}

// A value that the rule does not write is encoded to its old code.
fn read_exp_avg(at: At) -> vec4<f32> {
    if !LOADS_FIRST {
        fetch_exp_avg(at);
    }
    next_exp_avg = decode_q8(old_exp_avg, old_scale_exp_avg);
    return next_exp_avg;
}

fn write_exp_avg(at: At, x: vec4<f32>) {
    next_exp_avg = x;
}

fn share_peak_exp_avg(at: At, own: bool, thread: u32) {
    peaks[0u * WORKGROUP_SIZE + thread] = select(0u, peak(own_bits(at, next_exp_avg)), own);
}

fn store_exp_avg(at: At, thread: u32) {
    let scale = scales[0u * BLOCKS + thread / BLOCK_VECTORS];
    var next = encode_q8(next_exp_avg, scale);
    if STOCHASTIC {
        next = encode_q8_stochastic(next_exp_avg, scale, random(1u));
    }
    exp_avg_buffer[at.state] = keep_codes(at, old_exp_avg, next);
    if at.state % BLOCK_VECTORS == 0u {
        exp_avg_buffer[scale_at(at)] = scale;
    }
}

// ==== parts/slots/block.wgsl ====

// State slot `exp_avg_sq`, in blocks with one scale each. A block's scale depends on all of its values, so they are
// stored after the update.

var<private> old_exp_avg_sq: u32;
var<private> old_scale_exp_avg_sq: u32;
var<private> next_exp_avg_sq: vec4<f32>;

fn fetch_exp_avg_sq(at: At) {
    old_exp_avg_sq = exp_avg_sq_buffer[at.state];
    old_scale_exp_avg_sq = exp_avg_sq_buffer[scale_at(at)];
}

// A value that the rule does not write is encoded to its old code.
fn read_exp_avg_sq(at: At) -> vec4<f32> {
    if !LOADS_FIRST {
        fetch_exp_avg_sq(at);
    }
    next_exp_avg_sq = decode_q8(old_exp_avg_sq, old_scale_exp_avg_sq);
    return next_exp_avg_sq;
}

fn write_exp_avg_sq(at: At, x: vec4<f32>) {
    next_exp_avg_sq = x;
}

fn share_peak_exp_avg_sq(at: At, own: bool, thread: u32) {
    peaks[1u * WORKGROUP_SIZE + thread] = select(0u, peak(own_bits(at, next_exp_avg_sq)), own);
}

fn store_exp_avg_sq(at: At, thread: u32) {
    let scale = scales[1u * BLOCKS + thread / BLOCK_VECTORS];
    var next = encode_q8(next_exp_avg_sq, scale);
    if STOCHASTIC {
        next = encode_q8_stochastic(next_exp_avg_sq, scale, random(2u));
    }
    exp_avg_sq_buffer[at.state] = keep_codes(at, old_exp_avg_sq, next);
    if at.state % BLOCK_VECTORS == 0u {
        exp_avg_sq_buffer[scale_at(at)] = scale;
    }
}

// ==== parts/slots/dropped.wgsl ====

// State slot `max_exp_avg_sq`, which the hyperparameters do not need. It has no memory.

fn read_max_exp_avg_sq(at: At) -> vec4<f32> {
    return vec4<f32>();
}

fn write_max_exp_avg_sq(at: At, x: vec4<f32>) {}

// ==== parts/blocks/shared.wgsl ====

// Stores state in blocks. The adjacent threads of a block share the largest of their values. There are no
// atomics, and two barriers for all slots together.

const BLOCKS = WORKGROUP_SIZE / BLOCK_VECTORS;
// Rounds in which each thread finds the scale of one block. A compiler unrolls a loop of a known length.
const SCALE_ROUNDS = (BLOCK_SLOTS * BLOCKS + WORKGROUP_SIZE - 1u) / WORKGROUP_SIZE;

// Per slot, one after the other: the largest value of each thread, and the scale of each block.
var<workgroup> peaks: array<u32, BLOCK_SLOTS * WORKGROUP_SIZE>;
var<workgroup> scales: array<u32, BLOCK_SLOTS * BLOCKS>;

// The scales of a slot lie after all of its codes.
fn scale_at(at: At) -> u32 {
    return table.header.scales + at.state / BLOCK_VECTORS;
}

fn store_blocks(at: At, own: bool, thread: u32) {
    share_peaks(at, own, thread);
    workgroupBarrier();
    // One thread reads a whole block, and all threads read its result. On software Vulkan a load from a
    // computed address is one load per thread, which takes longer than a barrier.
    for (var round = 0u; round < SCALE_ROUNDS; round++) {
        let i = round * WORKGROUP_SIZE + thread;
        if i < BLOCK_SLOTS * BLOCKS {
            var most = 0u;
            var any = 0u;
            for (var k = 0u; k < BLOCK_VECTORS; k++) {
                let peak = peaks[BLOCK_VECTORS * i + k];
                most = max(most, peak);
                any |= peak;
            }
            scales[i] = scale_q8(most | (any & 1u));
        }
    }
    workgroupBarrier();
    if own {
        store_slots(at, thread);
    }
}

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

fn load_p(at: At) -> Half {
    return p_buffer[at.vector + table.header.p];
}

// ==== parts/store/vectors.wgsl ====

// Stores of `p`: one vector of the buffer. Lanes of padding hold their old bits.

fn store_p(at: At, next: Half) {
    p_buffer[at.vector + table.header.p] = next;
}

// ==== parts/load/vectors.wgsl ====

// Loads of `g`: one vector of the buffer.

fn load_g(at: At) -> Half {
    return g_buffer[at.vector + table.header.g];
}

// ==== parts/store/vectors.wgsl ====

// Stores of `g`: one vector of the buffer. Lanes of padding hold their old bits.

fn store_g(at: At, next: Half) {
    g_buffer[at.vector + table.header.g] = next;
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

// ==== parts/formats/half.wgsl ====

// Common code of the 2-byte formats: two numbers per word, a vector in two words, and rounding in integers,
// which is the same on every device.

alias Half = vec2<u32>;

const MAGNITUDE = vec4<u32>(0x7fffffffu);
const INFINITE_F32 = vec4<u32>(0x7f800000u);

fn unpacked(raw: Half) -> vec4<u32> {
    return vec4<u32>(raw.x & 0xffffu, raw.x >> 16u, raw.y & 0xffffu, raw.y >> 16u);
}

fn packed(code: vec4<u32>) -> Half {
    return code.xz | (code.yw << vec2<u32>(16u));
}

fn sign_16(bits: vec4<u32>) -> vec4<u32> {
    return (bits >> vec4<u32>(16u)) & vec4<u32>(0x8000u);
}

// m / 2^shift, rounded to nearest, ties to even; m has at most 24 digits if the shift is above 16.
fn nearest(m: vec4<u32>, shift: vec4<u32>) -> vec4<u32> {
    let s = min(shift, vec4<u32>(25u));
    let one = vec4<u32>(1u);
    return (m + (one << (s - one)) - one + ((m >> s) & one)) >> s;
}

// m / 2^shift, rounded up with a probability equal to its fraction.
fn stochastic(m: vec4<u32>, shift: vec4<u32>, random: vec4<u32>) -> vec4<u32> {
    let one = vec4<u32>(1u);
    let most = min(shift, vec4<u32>(31u));
    // Probabilities below 2⁻³¹ are lost.
    let digits = m >> min(shift - most, vec4<u32>(31u));
    return (digits + (random & ((one << most) - one))) >> most;
}

// ==== parts/formats/bf16.wgsl ====

// bf16: the upper half of an f32.

fn decode_bf16(raw: Half) -> vec4<f32> {
    return bitcast<vec4<f32>>(unpacked(raw) << vec4<u32>(16u));
}

fn encode_bf16(x: vec4<f32>) -> Half {
    return packed(codes_bf16(bitcast<vec4<u32>>(x)));
}

fn codes_bf16(bits: vec4<u32>) -> vec4<u32> {
    let nan = (bits >> vec4<u32>(16u)) | vec4<u32>(0x40u);
    return select(nearest(bits, vec4<u32>(16u)), nan, (bits & MAGNITUDE) > INFINITE_F32);
}

fn encode_bf16_stochastic(x: vec4<f32>, random: vec4<u32>) -> Half {
    let bits = bitcast<vec4<u32>>(x);
    let magnitude = bits & MAGNITUDE;
    let code = sign_16(bits) | min(stochastic(magnitude, vec4<u32>(16u), random), vec4<u32>(0x7f7fu));
    return packed(select(code, codes_bf16(bits), magnitude >= INFINITE_F32));
}

// An f32 in two halves: the nearest bf16, with ties away from zero, and the lower half of the bits. Together
// they restore the f32 bit for bit, except a NaN's payload in the lower half.
fn bits_to_split(x: vec4<f32>) -> vec4<u32> {
    let bits = bitcast<vec4<u32>>(x);
    let nan = (bits & vec4<u32>(0xffff0000u)) | vec4<u32>(0x00400000u);
    return select(bits, nan, (bits & MAGNITUDE) > INFINITE_F32);
}

fn bf16_before_remainder(x: vec4<f32>) -> Half {
    return packed((bits_to_split(x) + vec4<u32>(0x8000u)) >> vec4<u32>(16u));
}

fn remainder_of_bf16(x: vec4<f32>) -> Half {
    return packed(bits_to_split(x) & vec4<u32>(0xffffu));
}

fn bf16_with_remainder(raw: Half, remainder: Half) -> vec4<f32> {
    let code = unpacked(raw);
    // A zero with this remainder comes from the caller, not from a kernel.
    let is_zero = (code & vec4<u32>(0x7fffu)) == vec4<u32>(0u);
    let rest = unpacked(remainder);
    let low = select(rest, vec4<u32>(0u), is_zero & (rest >= vec4<u32>(0x8000u)));
    let high = code - (low >> vec4<u32>(15u));
    return bitcast<vec4<f32>>((high << vec4<u32>(16u)) | low);
}

// ==== parts/formats/q8.wgsl ====

// Blocks of 8-bit numbers: a sign and 4 + 3 bits, or 4 + 4 bits in a block without negative numbers, which
// the scale's sign bit marks.
//
// Codes and numbers meet on a ladder of floats, on which the rungs of all codes have equally spaced bits.
// Numbers count in 2⁻¹⁵ of the scale, so the least number with its own exponent is 2. Below it codes are
// linear. A number r lies at r + max(r, 2): at twice the number, or 2 above it. A rung l is the number min(l
// / 2, l − 2). Code 0 is the rung 2.0. The bits of a rung, without the bits after the code's fraction, end
// with the code.
//
// Results must have the same bits everywhere. A float operation is therefore exact, or a guess that the next
// lines correct.

const ONE_Q8 = 0x800000u;
const BYTES_Q8 = vec4<u32>(0u, 8u, 16u, 24u);

// All bits set for a block without negative numbers, and none otherwise.
fn unsigned_q8(scale: u32) -> u32 {
    return bitcast<u32>(bitcast<i32>(scale) >> 31u);
}

// Bits of a rung after its code's fraction.
fn rest_q8(scale: u32) -> u32 {
    return 20u + unsigned_q8(scale);
}

fn decode_q8(raw: u32, scale: u32) -> vec4<f32> {
    let exponent = scale & 0x7f800000u;
    let lost = exponent == 0x7f800000u;
    let magnitudes = raw & (unsigned_q8(scale) | 0x7f7f7f7fu);
    let code = (vec4<u32>(magnitudes) >> BYTES_Q8) & vec4<u32>(0xffu);
    let rung = bitcast<vec4<f32>>((code << vec4<u32>(rest_q8(scale))) | vec4<u32>(0x40000000u));
    // The product uses the scale's digits, so it is a normal number. If it is not normal with the scale's
    // exponent, the result is zero.
    let unit = bitcast<f32>((scale & 0x7fffffu) | 0x38000000u);
    let product = bitcast<vec4<i32>>(min(rung * (0.5 * unit), rung * unit - 2.0 * unit));
    let sign = ((vec4<u32>(raw ^ magnitudes) >> BYTES_Q8) & vec4<u32>(0xffu)) << vec4<u32>(24u);
    let number = bitcast<vec4<u32>>(product) + vec4<u32>(exponent - 0x3f800000u) + sign;
    let least = select(max(0x40000000i - bitcast<i32>(exponent), 1i), 0x7fffffffi, lost);
    let none = select(0u, 0x7fc00000u, lost);
    return bitcast<vec4<f32>>(select(number, vec4<u32>(none), product < vec4<i32>(least)));
}

// The largest magnitude of a vector, shifted by one bit; the free bit is set if a number is negative.
fn peak(bits: vec4<u32>) -> u32 {
    // As unsigned integers, the largest bits are the most negative number's, if there is one. As signed
    // integers, the largest bits are the most positive number's.
    let most = max(max(bits.x, bits.y), max(bits.z, bits.w));
    let i = bitcast<vec4<i32>>(bits);
    let other = bitcast<u32>(max(max(i.x, i.y), max(i.z, i.w)));
    return max(most << 1u, other << 1u) + select(0u, 1u, most > 0x80000000u);
}

// A block's scale. It has 16 bits, so that products are exact.
fn scale_q8(peak: u32) -> u32 {
    let most = peak >> 1u;
    let rounded = min((most + 0x80u) & 0xffffff00u, 0x7f7fff00u) | ((peak ^ 1u) << 31u);
    return select(select(rounded, 0u, most < ONE_Q8), 0x7fc00000u, most >= 0x7f800000u);
}

// Whether a block has an infinity or NaN: then all its codes are 0.
fn is_lost_q8(scale: u32) -> bool {
    return (scale & 0x7f800000u) == 0x7f800000u;
}

fn encode_q8(x: vec4<f32>, scale: u32) -> u32 {
    let rest = vec4<u32>(rest_q8(scale));
    // Numbers and a unit without the scale's exponent.
    let power = ~scale & 0x7f800000u;
    let number = abs(x) * bitcast<f32>(power);
    let unit = bitcast<f32>((scale & 0x7fffffu) | 0x38800000u);
    let above = max(number, vec4<f32>(2.0 * unit));
    // The approximate places of the numbers. In a block without negative numbers, a number other than zero
    // has at least code 1.
    let lowest = bitcast<f32>(0x40000000u | (unsigned_q8(scale) & 0x80000u));
    let place = max((number + above) * (1.0 / unit), vec4<f32>(lowest));
    // The code below, unless the guess is off by one, close to a code. The middle between it and the next
    // code decides in both cases. The comparison is in integers: a compiler could turn a difference of floats
    // into a sum on the other side, which is rounded.
    let rung = bitcast<vec4<u32>>(place) >> rest;
    let middle = bitcast<vec4<f32>>((rung << rest) | vec4<u32>(1u << (rest.x - 1u)));
    let tie = bitcast<vec4<i32>>(middle * unit - above);
    let code = rung + select(vec4<u32>(0u), vec4<u32>(1u), bitcast<vec4<i32>>(number) >= tie);
    let signed = code + ((bitcast<vec4<u32>>(x) >> vec4<u32>(31u)) << vec4<u32>(7u));
    // Numbers below the least normal number become zero without a sign. In a block with negative numbers, so
    // do numbers below half of the least code.
    let least = max(bitcast<f32>(scale) * 0x1p-18f, 0x1p-126f);
    let byte = select(signed, vec4<u32>(0u), abs(x) < vec4<f32>(least));
    let word = (byte.x & 0xffu) | ((byte.y & 0xffu) << 8u) | ((byte.z & 0xffu) << 16u) | (byte.w << 24u);
    return select(word, 0u, power == 0u);
}

fn encode_q8_stochastic(x: vec4<f32>, scale: u32, random: vec4<u32>) -> u32 {
    let one = vec4<u32>(1u);
    let zero = vec4<u32>(0u);
    let unsigned = unsigned_q8(scale);
    let fraction = 3u - unsigned;
    let bits = bitcast<vec4<u32>>(x);
    // The quotient of the mantissas, of 14 or 15 bits. If it were always rounded down, a slow running mean
    // would sink in every step. The upper half of the random bits is therefore added after its last digit.
    let divisor = ((scale & 0x7fffffu) | ONE_Q8) >> 8u;
    let mantissa = ((bits << vec4<u32>(6u)) & vec4<u32>(0x1fffffc0u)) | vec4<u32>(0x20000000u);
    let dividend = mantissa + (((random >> vec4<u32>(16u)) * divisor) >> vec4<u32>(16u));
    // A guess, the quotient or one less: the last digits of a float above 2²³. An integer division takes
    // longer.
    let inverse = (1.0 - 0x1p-19f) / f32(divisor);
    let near = bitcast<vec4<u32>>(vec4<f32>(dividend) * inverse + 8388607.5) & vec4<u32>(0xffffu);
    let quotient = near + select(zero, one, dividend - near * divisor >= vec4<u32>(divisor));
    // The digits from one place on, and the power of two of the number above the least code with an exponent.
    let short = quotient < vec4<u32>(1u << 14u);
    let digits = quotient << select(vec4<u32>(16u), vec4<u32>(17u), short);
    let exponent = (scale >> 23u) & 0xffu;
    let own = (bits >> vec4<u32>(23u)) & vec4<u32>(0xffu);
    let power = bitcast<vec4<i32>>(own + (14u - exponent) - select(zero, one, short));
    // The digits as a number with a fixed point after the code's last bit. For linear codes, each power moves
    // the digits by one place, and rounding takes one more random bit, up to 16 more.
    let point = 30u - fraction;
    let place = digits >> bitcast<vec4<u32>>(clamp(-power, vec4<i32>(0), vec4<i32>(31)));
    let draw = random << bitcast<vec4<u32>>(clamp(power + 16, vec4<i32>(0), vec4<i32>(16)));
    let part = (place + (draw & vec4<u32>((1u << point) - 1u))) >> vec4<u32>(point);
    let code = part + (bitcast<vec4<u32>>(max(power, vec4<i32>(0))) << vec4<u32>(fraction));
    // In a block without negative numbers, a number other than zero does not become zero.
    let inside = clamp(code, vec4<u32>(unsigned & 1u), vec4<u32>(15u << fraction));
    // Below the least normal number, or without digits left in a block with negative numbers.
    let least = max(bitcast<f32>(scale) * 0x1p-45f, 0x1p-126f);
    let byte = select(inside, zero, abs(x) < vec4<f32>(least)) << BYTES_Q8;
    let codes = byte.x | byte.y | byte.z | byte.w;
    // Zero has no sign. Codes with signs have seven bits, so nothing is carried from byte to byte.
    let top = (bits >> vec4<u32>(24u, 16u, 8u, 0u)) & vec4<u32>(0x80u, 0x8000u, 0x800000u, 0x80000000u);
    let signs = (top.x | top.y | top.z | top.w) & ~unsigned & (codes + 0x7f7f7f7fu);
    return select(codes | signs, 0u, is_lost_q8(scale));
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

const SINGLE = false;
const UPDATES = true;
const LOADS_FIRST = true;
const STOCHASTIC = false;
const BOUNDED = false;
const SPLITS = true;
const SKIPS = true;
const BLOCK_VECTORS = 8u;
const BLOCK_SLOTS = 2u;
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

@group(0) @binding(1) var<storage, read_write> p_buffer: array<Half>;
@group(0) @binding(2) var<storage, read_write> g_buffer: array<Half>;
@group(0) @binding(3) var<storage, read_write> exp_avg_buffer: array<u32>;
@group(0) @binding(4) var<storage, read_write> exp_avg_sq_buffer: array<u32>;
@group(0) @binding(5) var<storage, read_write> remainder_buffer: array<Half>;

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

@group(1) @binding(0) var<uniform> step_scalars: array<vec4<f32>, 7>;

fn scalars_of(group: u32) -> GroupScalars {
    let v0 = step_scalars[group * 3u + 1u];
    let v1 = step_scalars[group * 3u + 2u];
    let v2 = step_scalars[group * 3u + 3u];
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

fn share_peaks(at: At, own: bool, thread: u32) {
    share_peak_exp_avg(at, own, thread);
    share_peak_exp_avg_sq(at, own, thread);
}

fn store_slots(at: At, thread: u32) {
    store_exp_avg(at, thread);
    store_exp_avg_sq(at, thread);
}
