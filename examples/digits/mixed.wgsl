// The network of mlp.wgsl in mixed precision: f16 in memory, sums in f32, and the loss multiplied by a scale.
// It follows f16.wgsl.
//
// A thread computes two neighbours, which share a u32. All sizes and all starts of tensors are even.

override WORKGROUP: u32;
override PIXELS: u32;
override HIDDEN: u32;
override CLASSES: u32;
// The start of each tensor in the flat buffers of parameters, weights and gradients.
override W1: u32; // [PIXELS, HIDDEN]
override B1: u32; // [HIDDEN]
override W2: u32; // [HIDDEN, CLASSES]
override B2: u32; // [CLASSES]

// `pack` stores this for a sum that has overflowed f16, and no infinity: WGSL lets arithmetic assume that
// there are no infinities.
const OVERFLOW = vec2<f32>(1e6);
const INFINITY = vec2<u32>(0x7f800000u);

struct Example {
    image: u32,
    label: u32,
}

// Two neurons' outputs for one example, and the scaled gradients of the loss by their inputs (the sums before
// the nonlinearity).
struct Neurons {
    value: u32,
    gradient: u32,
}

@group(0) @binding(0) var<storage, read> batch: array<Example>;
@group(0) @binding(1) var<storage, read_write> losses: array<f32>; // [examples]
@group(0) @binding(2) var<storage, read> pixels: array<f32>; // [images, PIXELS], 0 to 1
@group(0) @binding(3) var<storage, read> p: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read_write> g: array<vec2<u32>>; // the bits of f32
@group(0) @binding(5) var<storage, read_write> weights: array<u32>; // p in f16
@group(0) @binding(6) var<storage, read_write> hidden: array<Neurons>; // [examples, HIDDEN / 2]
@group(0) @binding(7) var<storage, read_write> output: array<Neurons>; // [examples, CLASSES / 2]
@group(0) @binding(8) var<uniform> loss_scale: f32;

// The parameters at `at` and after it.
fn weight(at: u32) -> vec2<f32> {
    return unpack(weights[at / 2u]);
}

// One thread per two parameters.
@compute @workgroup_size(WORKGROUP)
fn round_weights(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < arrayLength(&weights) {
        weights[id.x] = pack(p[id.x]);
    }
}

// One thread per example and two hidden neurons.
@compute @workgroup_size(WORKGROUP)
fn hidden_layer(@builtin(global_invocation_id) id: vec3<u32>) {
    let example = id.x / (HIDDEN / 2u);
    let neuron = id.x % (HIDDEN / 2u) * 2u;
    if example >= arrayLength(&batch) {
        return;
    }
    let image = batch[example].image * PIXELS;
    var sum = weight(B1 + neuron);
    for (var i = 0u; i < PIXELS; i++) {
        sum += pixels[image + i] * weight(W1 + i * HIDDEN + neuron);
    }
    hidden[id.x].value = pack(max(sum, vec2<f32>()));
}

// One thread per example: digit scores, their softmax in f32, the loss and its scaled gradient by the scores.
@compute @workgroup_size(WORKGROUP)
fn output_layer(@builtin(global_invocation_id) id: vec3<u32>) {
    let example = id.x;
    if example >= arrayLength(&batch) {
        return;
    }
    let scores = example * CLASSES / 2u;
    var largest = -65504.0;
    for (var digit = 0u; digit < CLASSES; digit += 2u) {
        var sum = weight(B2 + digit);
        for (var j = 0u; j < HIDDEN; j += 2u) {
            let value = unpack(hidden[(example * HIDDEN + j) / 2u].value);
            let first = W2 + j * CLASSES + digit;
            sum += value.x * weight(first) + value.y * weight(first + CLASSES);
        }
        let packed = pack(sum);
        output[scores + digit / 2u].value = packed;
        let score = unpack(packed);
        largest = max(largest, max(score.x, score.y));
    }
    // Relative to the largest score, so that exp cannot overflow.
    var total = 0.0;
    for (var pair = 0u; pair < CLASSES / 2u; pair++) {
        let e = exp(unpack(output[scores + pair].value) - largest);
        total += e.x + e.y;
    }
    let label = batch[example].label;
    let factor = loss_scale / f32(arrayLength(&batch));
    for (var pair = 0u; pair < CLASSES / 2u; pair++) {
        let probability = exp(unpack(output[scores + pair].value) - largest) / total;
        let truth = vec2<f32>(2u * pair + vec2<u32>(0u, 1u) == vec2<u32>(label));
        output[scores + pair].gradient = pack(factor * (probability - truth));
    }
    losses[example] = log(total) - (unpack(output[scores + label / 2u].value)[label % 2u] - largest);
}

// One thread per example and two hidden neurons.
@compute @workgroup_size(WORKGROUP)
fn hidden_gradients(@builtin(global_invocation_id) id: vec3<u32>) {
    let example = id.x / (HIDDEN / 2u);
    let row = W2 + id.x % (HIDDEN / 2u) * 2u * CLASSES;
    if example >= arrayLength(&batch) {
        return;
    }
    var sum = vec2<f32>();
    var overflow = false;
    for (var digit = 0u; digit < CLASSES; digit += 2u) {
        let packed = output[(example * CLASSES + digit) / 2u].gradient;
        let gradient = unpack(packed);
        overflow |= any(infinite(packed));
        sum += vec2<f32>(dot(gradient, weight(row + digit)), dot(gradient, weight(row + CLASSES + digit)));
    }
    let lit = unpack(hidden[id.x].value) > vec2<f32>();
    hidden[id.x].gradient = pack(select(vec2<f32>(), select(sum, OVERFLOW, overflow), lit));
}

// One thread per two parameters: the scaled gradients of the batch's mean loss.
@compute @workgroup_size(WORKGROUP)
fn parameter_gradients(@builtin(global_invocation_id) id: vec3<u32>) {
    let at = 2u * id.x;
    let examples = arrayLength(&batch);
    var sum = vec2<f32>();
    var overflow = vec2<bool>();
    if at >= W1 && at < W1 + PIXELS * HIDDEN {
        let pixel = (at - W1) / HIDDEN;
        let neuron = (at - W1) % HIDDEN;
        for (var e = 0u; e < examples; e++) {
            let packed = hidden[(e * HIDDEN + neuron) / 2u].gradient;
            overflow |= infinite(packed);
            sum += pixels[batch[e].image * PIXELS + pixel] * unpack(packed);
        }
    } else if at >= B1 && at < B1 + HIDDEN {
        for (var e = 0u; e < examples; e++) {
            let packed = hidden[(e * HIDDEN + at - B1) / 2u].gradient;
            overflow |= infinite(packed);
            sum += unpack(packed);
        }
    } else if at >= W2 && at < W2 + HIDDEN * CLASSES {
        let neuron = (at - W2) / CLASSES;
        let digit = (at - W2) % CLASSES;
        for (var e = 0u; e < examples; e++) {
            let packed = output[(e * CLASSES + digit) / 2u].gradient;
            overflow |= infinite(packed);
            sum += unpack(hidden[(e * HIDDEN + neuron) / 2u].value)[neuron % 2u] * unpack(packed);
        }
    } else if at >= B2 && at < B2 + CLASSES {
        for (var e = 0u; e < examples; e++) {
            let packed = output[(e * CLASSES + at - B2) / 2u].gradient;
            overflow |= infinite(packed);
            sum += unpack(packed);
        }
    } else {
        return;
    }
    let packed = pack(select(sum, OVERFLOW, overflow));
    g[id.x] = select(bitcast<vec2<u32>>(unpack(packed)), INFINITY, infinite(packed));
}
