// A tensor's scalars: its group's, but for the ratio, which its norms give.

@group(0) @binding(2) var<storage, read_write> tensor_rows: array<vec4<f32>>;
// The group of each tensor.
@group(0) @binding(3) var<storage, read> groups: array<u32>;

fn finish(target_index: u32, thread: u32) {
    let group = groups[target_index];
    let found = trust_ratio(row(group), norm_of(totals[0], 1.0), norm_of(totals[1], 1.0));
    if thread < STEP_SCALARS {
        var x = rows[STEP_HEADER + group * STEP_SCALARS + thread];
        if thread == RATIO / 4u {
            x[RATIO % 4u] = found;
        }
        tensor_rows[STEP_HEADER + target_index * STEP_SCALARS + thread] = x;
    }
    if target_index == 0u && thread < STEP_HEADER {
        tensor_rows[thread] = rows[thread];
    }
}
