// Forward and backward pass of a multilayer perceptron: pixels, a ReLU layer, softmax cross-entropy.
//
// Every thread computes one number and loops over the terms of its sum. That is not the fastest way, but each
// sum has a fixed order and no atomics: the same seed gives the same bits.

override WORKGROUP: u32;
override PIXELS: u32;
override HIDDEN: u32;
override CLASSES: u32;
// The start of each tensor in the flat buffers of parameters and gradients.
override W1: u32; // [PIXELS, HIDDEN]
override B1: u32; // [HIDDEN]
override W2: u32; // [HIDDEN, CLASSES]
override B2: u32; // [CLASSES]

// A neuron's output for one example, and the gradient of that example's loss by the neuron's input (the sum
// before the nonlinearity).
struct Neuron {
    value: f32,
    gradient: f32,
}

struct Outcome {
    loss: f32,
    correct: f32, // 1 or 0
}

@group(0) @binding(0) var<storage, read> batch: array<u32>; // the image that each example is
@group(0) @binding(1) var<storage, read> pixels: array<f32>; // [images, PIXELS], 0 to 1
@group(0) @binding(2) var<storage, read> labels: array<u32>; // [images]
@group(0) @binding(3) var<storage, read> p: array<f32>;
@group(0) @binding(4) var<storage, read_write> g: array<f32>;
@group(0) @binding(5) var<storage, read_write> hidden: array<Neuron>; // [examples, HIDDEN]
@group(0) @binding(6) var<storage, read_write> output: array<Neuron>; // [examples, CLASSES]
@group(0) @binding(7) var<storage, read_write> outcomes: array<Outcome>; // [images]

// One thread per example and hidden neuron.
@compute @workgroup_size(WORKGROUP)
fn hidden_layer(@builtin(global_invocation_id) id: vec3<u32>) {
    let example = id.x / HIDDEN;
    let neuron = id.x % HIDDEN;
    if example >= arrayLength(&batch) {
        return;
    }
    let image = batch[example] * PIXELS;
    var sum = p[B1 + neuron];
    for (var i = 0u; i < PIXELS; i++) {
        sum += pixels[image + i] * p[W1 + i * HIDDEN + neuron];
    }
    hidden[id.x].value = max(sum, 0.0);
}

// One thread per example: digit scores, their softmax, the loss and its gradient by the scores.
@compute @workgroup_size(WORKGROUP)
fn output_layer(@builtin(global_invocation_id) id: vec3<u32>) {
    let example = id.x;
    if example >= arrayLength(&batch) {
        return;
    }
    let scores = example * CLASSES;
    var largest = -3.0e38;
    for (var digit = 0u; digit < CLASSES; digit++) {
        var sum = p[B2 + digit];
        for (var j = 0u; j < HIDDEN; j++) {
            sum += hidden[example * HIDDEN + j].value * p[W2 + j * CLASSES + digit];
        }
        output[scores + digit].value = sum;
        largest = max(largest, sum);
    }
    // Relative to the largest score, so that exp cannot overflow.
    var total = 0.0;
    for (var digit = 0u; digit < CLASSES; digit++) {
        total += exp(output[scores + digit].value - largest);
    }
    let image = batch[example];
    let label = labels[image];
    for (var digit = 0u; digit < CLASSES; digit++) {
        let probability = exp(output[scores + digit].value - largest) / total;
        output[scores + digit].gradient = probability - select(0.0, 1.0, digit == label);
    }
    let score = output[scores + label].value;
    outcomes[image] = Outcome(log(total) - (score - largest), select(0.0, 1.0, score == largest));
}

// One thread per example and hidden neuron.
@compute @workgroup_size(WORKGROUP)
fn hidden_gradients(@builtin(global_invocation_id) id: vec3<u32>) {
    let example = id.x / HIDDEN;
    let neuron = id.x % HIDDEN;
    if example >= arrayLength(&batch) {
        return;
    }
    var sum = 0.0;
    for (var digit = 0u; digit < CLASSES; digit++) {
        sum += output[example * CLASSES + digit].gradient * p[W2 + neuron * CLASSES + digit];
    }
    hidden[id.x].gradient = select(0.0, sum, hidden[id.x].value > 0.0);
}

// One thread per parameter: the gradient of the batch's mean loss, at the parameter's place.
@compute @workgroup_size(WORKGROUP)
fn parameter_gradients(@builtin(global_invocation_id) id: vec3<u32>) {
    let at = id.x;
    let examples = arrayLength(&batch);
    var sum = 0.0;
    if at >= W1 && at < W1 + PIXELS * HIDDEN {
        let pixel = (at - W1) / HIDDEN;
        let neuron = (at - W1) % HIDDEN;
        for (var e = 0u; e < examples; e++) {
            sum += pixels[batch[e] * PIXELS + pixel] * hidden[e * HIDDEN + neuron].gradient;
        }
    } else if at >= B1 && at < B1 + HIDDEN {
        for (var e = 0u; e < examples; e++) {
            sum += hidden[e * HIDDEN + at - B1].gradient;
        }
    } else if at >= W2 && at < W2 + HIDDEN * CLASSES {
        let neuron = (at - W2) / CLASSES;
        let digit = (at - W2) % CLASSES;
        for (var e = 0u; e < examples; e++) {
            sum += hidden[e * HIDDEN + neuron].value * output[e * CLASSES + digit].gradient;
        }
    } else if at >= B2 && at < B2 + CLASSES {
        for (var e = 0u; e < examples; e++) {
            sum += output[e * CLASSES + at - B2].gradient;
        }
    } else {
        return;
    }
    g[at] = sum / f32(examples);
}
