// One workgroup between the gradients' reduction and the update: clip factor, skip, loss scale, and the
// scalars of the step that the device is at.

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
    // Bound of the norm.
    max_norm: f32,
    growth: f32,
    backoff: f32,
    interval: u32,
    min_scale: f32,
    max_scale: f32,
    // Partial sums: of groups, where they have norms of their own.
    partials: u32,
    // To a multiple of 16 bytes.
    unused: u32,
    sets: array<vec4<f32>>,
}

@group(0) @binding(0) var<storage, read> partials: array<Partial>;
@group(0) @binding(1) var<storage, read_write> live: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> state: State;
@group(1) @binding(0) var<storage, read> request: Request;

// Factor of the gradients, and whether the step is skipped.
var<workgroup> decision: vec2<f32>;
var<workgroup> pending: u32;

@compute @workgroup_size(WORKGROUP_SIZE)
fn control(@builtin(local_invocation_index) thread: u32) {
    var sum = Partial();
    for (var i = thread; i < request.partials; i += WORKGROUP_SIZE) {
        sum = joined(sum, partials[i]);
    }
    let all = of_workgroup(thread, Partials(sum));
    if thread == 0u {
        decide(all[0]);
    }
    workgroupBarrier();
    // The scalars of as many steps as have been taken.
    for (var i = thread; i < CANDIDATE; i += WORKGROUP_SIZE) {
        var x = request.sets[pending * CANDIDATE + i];
        if i == 0u {
            x = vec4<f32>(decision, x.zw);
        } else if GROUPED && i >= STEP_HEADER && (i - STEP_HEADER) % STEP_SCALARS == STEP_SCALARS - 1u {
            // The last of a group's vec4s.
            x[FACTOR] = decision.x * clip_of(partials[(i - STEP_HEADER) / STEP_SCALARS], decision.x);
        }
        live[i] = x;
    }
}

// What gradients are multiplied by after `unscale` to bound their norm.
fn clip_of(sum: Partial, unscale: f32) -> f32 {
    let norm = norm_of(sum, unscale);
    if sum.flags != 0u {
        // c over infinity, or over NaN.
        return select(0.0, norm, sum.flags > 1u);
    }
    return min(1.0, request.max_norm / (norm + 1e-6));
}

// Exact of a power of two whose reciprocal is a normal number, which a division need not be.
fn reciprocal(x: f32) -> f32 {
    let bits = bitcast<u32>(x);
    let exact = (bits & 0x7fffffu) == 0u && bits < (254u << 23u);
    return select(1.0 / x, bitcast<f32>((254u << 23u) - bits), exact);
}

fn decide(sum: Partial) {
    let scale = select(1.0, state.scale, DYNAMIC);
    let unscale = request.unscale * reciprocal(scale);
    pending = min(request.number - state.taken - request.first, request.count - 1u);
    var clip = 1.0;
    if CLIPS {
        clip = clip_of(sum, unscale);
    }
    decision = vec2<f32>(unscale * clip, select(0.0, 1.0, SKIPS && sum.flags != 0u));
    if GROUPED {
        // Each has its own; the least is reported, and NaN if one is NaN. `min` may drop it.
        for (var group = 0u; group < request.partials; group++) {
            clip = min(clip, clip_of(partials[group], unscale));
        }
        clip = select(clip, norm_of(sum, unscale), (sum.flags & 2u) != 0u);
    }
    state.number = request.number;
    state.flags = sum.flags;
    state.norm = norm_of(sum, unscale);
    state.factor = clip;
    state.used_scale = scale;
    if decision.y == 0.0 {
        state.taken += 1u;
    }
    if DYNAMIC {
        if sum.flags != 0u {
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
