// The scalars of a tensor: its group's scalars, with the trust ratio from the tensor's norms.

@group(0) @binding(2) var<storage, read_write> tensor_scalars: array<vec4<f32>>;
// The group of each tensor.
@group(0) @binding(3) var<storage, read> groups: array<u32>;

// Whether an f32 does not hold a norm.
fn is_beyond(root: Root) -> bool {
    return root.shift > 0 && root.x >= 0x1p48f;
}

// A norm times 2⁻⁸⁰. A norm above 0 stays above 0: its ratio to a much larger norm is 0 or infinite.
fn of_large_unit(root: Root) -> f32 {
    if root.shift > 0 || root.x == 0.0 {
        return root.x;
    }
    return max(root.x * select(0.0, 0x1p-80f, root.shift == 0), 0x1p-126f);
}

// Writes every `step`th vector of a tensor's scalars, from a first one on.
fn finish(index: u32, first: u32, step: u32, totals: Partials) {
    let group = groups[index];
    let s = scalars_of(group);
    var ratio = trust_ratio(s, norm_of(totals[0]), norm_of(totals[1]));
    let p = root_of(totals[0]);
    let u = root_of(totals[1]);
    if (totals[0].flags | totals[1].flags) == 0u && (is_beyond(p) || is_beyond(u)) {
        ratio = trust_ratio(in_large_units(s), of_large_unit(p), of_large_unit(u));
    }
    for (var i = first; i < STEP_SCALARS; i += step) {
        var x = step_scalars[STEP_HEADER + group * STEP_SCALARS + i];
        if i == RATIO / 4u {
            x[RATIO % 4u] = ratio;
        }
        tensor_scalars[STEP_HEADER + index * STEP_SCALARS + i] = x;
    }
    if index == 0u {
        for (var i = first; i < STEP_HEADER; i += step) {
            tensor_scalars[i] = step_scalars[i];
        }
    }
}
