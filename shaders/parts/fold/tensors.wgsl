// The scalars of a tensor: those of its group, but for the trust ratio, which follows from the tensor's
// norms.

@group(0) @binding(2) var<storage, read_write> tensor_scalars: array<vec4<f32>>;
// The group of each tensor.
@group(0) @binding(3) var<storage, read> groups: array<u32>;

// Writes every `step`th vector of a tensor's scalars, from one on.
fn finish(index: u32, first: u32, step: u32, totals: Partials) {
    let group = groups[index];
    let ratio = trust_ratio(scalars_of(group), norm_of(totals[0]), norm_of(totals[1]));
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
