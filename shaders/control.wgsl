// One workgroup between the gradients' reduction and the update: clip factor, skip, loss scale, and the scalars of the step that the
// device is at.

// As the reduction has it.
struct Partial {
    large: f32,
    middle: f32,
    tiny: f32,
    flags: u32,
}


// What the host knows of the step.
struct Request {
    // Steps recorded before it.
    number: u32,
    // How many steps not taken the first set of scalars is for; the next ones are for one more each.
    first: u32,
    // Sets.
    count: u32,
    // 1 over the host's divisor of the gradients.
    unscale: f32,
    // Bound of the global norm.
    max_norm: f32,
    growth: f32,
    backoff: f32,
    interval: u32,
    min_scale: f32,
    max_scale: f32,
    // NaN, which a shader cannot write.
    nan: f32,
    partials: u32,
    sets: array<vec4<f32>>,
}

// What the device remembers, and what the host is told.
struct State {
    // The loss scale. It comes first, so that an engine can bind the buffer for it.
    scale: f32,
    // Steps in a row without an overflow.
    good: u32,
    // Steps taken so far: recorded, run, and not skipped.
    taken: u32,
    // Of the last step: its number, what was found, norm, clip factor and the scale that its gradients had.
    number: u32,
    flags: u32,
    norm: f32,
    factor: f32,
    used_scale: f32,
}

@group(0) @binding(0) var<storage, read> partials: array<Partial>;
@group(0) @binding(1) var<storage, read_write> live: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> state: State;
@group(1) @binding(0) var<storage, read> request: Request;

var<workgroup> sums: array<vec3<f32>, WORKGROUP_SIZE>;
var<workgroup> flags: array<u32, WORKGROUP_SIZE>;
// Factor of the gradients, and whether the step is skipped.
var<workgroup> decision: vec2<f32>;
var<workgroup> lag: u32;

@compute @workgroup_size(WORKGROUP_SIZE)
fn control(@builtin(local_invocation_index) thread: u32) {
    var sum = vec3<f32>();
    var flag = 0u;
    for (var i = thread; i < request.partials; i += WORKGROUP_SIZE) {
        let partial = partials[i];
        sum += vec3<f32>(partial.large, partial.middle, partial.tiny);
        flag |= partial.flags;
    }
    sums[thread] = sum;
    flags[thread] = flag;
    workgroupBarrier();
    for (var half = WORKGROUP_SIZE / 2u; half > 0u; half /= 2u) {
        if thread < half {
            sums[thread] += sums[thread + half];
            flags[thread] |= flags[thread + half];
        }
        workgroupBarrier();
    }
    if thread == 0u {
        decide(sums[0], flags[0]);
    }
    workgroupBarrier();
    // The scalars of as many steps as have been taken.
    for (var i = thread; i < SET; i += WORKGROUP_SIZE) {
        var x = request.sets[lag * SET + i];
        if i == 0u {
            x = vec4<f32>(decision, x.zw);
        }
        live[i] = x;
    }
}

// The norm, from sums of squares of large, middle and tiny numbers, and the same times `factor`.
fn norm_of(sum: vec3<f32>, factor: f32) -> f32 {
    // Roots first: their range is half of that of squares.
    let part = sqrt(sum);
    if sum.x > 0.0 {
        return together(part.x, part.y * 0x1p-80f) * factor * 0x1p80f;
    }
    if sum.y > 0.0 {
        return together(part.y, part.z * 0x1p-80f) * factor;
    }
    return part.z * factor * 0x1p-80f;
}

// √(a² + b²), a > 0.
fn together(a: f32, b: f32) -> f32 {
    let most = max(a, b);
    let ratio = min(a, b) / most;
    return most * sqrt(1.0 + ratio * ratio);
}

fn decide(sum: vec3<f32>, found: u32) {
    let scale = select(1.0, state.scale, DYNAMIC);
    let unscale = request.unscale / scale;
    let norm = norm_of(sum, unscale);
    var clip = 1.0;
    if CLIPS {
        clip = min(1.0, request.max_norm / (norm + 1e-6));
        if found != 0u {
            // c over infinity, or over NaN.
            clip = select(0.0, request.nan, found > 1u);
        }
    }
    let skip = SKIPS && found != 0u;
    decision = vec2<f32>(unscale * clip, select(0.0, 1.0, skip));
    lag = min(request.number - state.taken - request.first, request.count - 1u);
    state.number = request.number;
    state.flags = found;
    state.norm = norm;
    state.factor = clip;
    state.used_scale = scale;
    if !skip {
        state.taken += 1u;
    }
    if DYNAMIC {
        if found != 0u {
            state.scale = max(scale * request.backoff, request.min_scale);
            state.good = 0u;
        } else {
            state.good += 1u;
            if state.good == request.interval {
                state.scale = min(scale * request.growth, request.max_scale);
                state.good = 0u;
            }
        }
    }
}
