// One workgroup between the gradients' reduction and the update: computes clip factor, skip and loss scale,
// and selects the scalars for the device's count of steps.

// The host's request for a step.
struct Request {
    // Steps recorded before this step.
    number: u32,
    // Steps not taken for the first candidate; each later candidate is for one more.
    first: u32,
    // Number of candidates.
    count: u32,
    // 1 / gradient scale.
    unscale: f32,
    // Bound of the norm.
    max_norm: f32,
    growth: f32,
    backoff: f32,
    interval: u32,
    min_scale: f32,
    max_scale: f32,
    // Number of partial sums: one per group if groups have norms of their own.
    partials: u32,
    // Padding to a multiple of 16 bytes.
    unused: u32,
    candidates: array<vec4<f32>>,
}

@group(0) @binding(0) var<storage, read> partials: array<Partial>;
@group(0) @binding(1) var<storage, read_write> live: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> state: State;
@group(1) @binding(0) var<storage, read> request: Request;

// Factor of the gradients, and whether the step is skipped.
var<workgroup> decision: vec2<f32>;
// 1 / (gradient scale · loss scale).
var<workgroup> unscale: Wide;
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
    // The scalars for the count of taken steps.
    for (var i = thread; i < CANDIDATE; i += WORKGROUP_SIZE) {
        var x = request.candidates[pending * CANDIDATE + i];
        if i == 0u {
            x = vec4<f32>(decision, x.zw);
        } else if GROUPED && i >= STEP_HEADER && (i - STEP_HEADER) % STEP_SCALARS == STEP_SCALARS - 1u {
            // The last of a group's vec4s.
            x[FACTOR] = factor_of(partials[(i - STEP_HEADER) / STEP_SCALARS]);
        }
        live[i] = x;
    }
}

// Whether the norm bounds the gradients: an infinite bound only measures it.
fn bounds() -> bool {
    return bitcast<u32>(request.max_norm) != INFINITE;
}

// The norm of unscaled gradients.
fn unscaled(sum: Partial) -> Wide {
    let root = root_of(sum);
    return product(wide(root.x, root.shift), unscale);
}

// The factor of unscaled gradients that bounds their norm, if the norm is not NaN.
fn clip_of(sum: Partial) -> Wide {
    if !bounds() {
        return ONE;
    }
    if sum.flags != 0u {
        // c over infinity.
        return NOTHING;
    }
    var divisor = unscaled(sum);
    // 10⁻⁶ does not change a large norm.
    if divisor.e < 64 {
        divisor = wide(narrow(divisor) + 1e-6, 0);
    }
    let factor = ratio(wide(request.max_norm, 0), divisor);
    if factor.e >= 0 {
        return ONE;
    }
    return factor;
}

// `x`, or NaN if the bounding norm is NaN.
fn or_nan(sum: Partial, x: f32) -> f32 {
    if bounds() && (sum.flags & 2u) != 0u {
        return not_finite(sum.flags);
    }
    return x;
}

// The factor of gradients with this norm.
fn factor_of(sum: Partial) -> f32 {
    return or_nan(sum, sent(product(unscale, clip_of(sum))));
}

fn decide(sum: Partial) {
    let before = state.number;
    let scale = select(1.0, state.scale, DYNAMIC);
    unscale = ratio(wide(request.unscale, 0), wide(scale, 0));
    pending = min(request.number - state.taken - request.first, request.count - 1u);
    var clip = 1.0;
    var factor = sent(unscale);
    if CLIPS {
        clip = or_nan(sum, narrow(clip_of(sum)));
        factor = factor_of(sum);
    }
    decision = vec2<f32>(factor, select(0.0, 1.0, SKIPS && sum.flags != 0u));
    if GROUPED {
        // Each group has its own factor. The least is reported, or NaN if one is NaN.
        for (var group = 0u; group < request.partials; group++) {
            clip = min(clip, narrow(clip_of(partials[group])));
        }
        clip = or_nan(sum, clip);
    }
    var norm = narrow(unscaled(sum));
    if sum.flags != 0u {
        norm = not_finite(sum.flags);
    }
    if before != NO_STEP && bitcast<i32>(request.number - before) <= 0i {
        state.disordered = 1u;
    }
    state.number = request.number;
    state.flags = sum.flags;
    state.norm = norm;
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
