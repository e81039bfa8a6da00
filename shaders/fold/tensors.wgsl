// A tensor's scalars: its group's, but for the ratio, which its norms give.

@group(0) @binding(2) var<storage, read_write> tensor_rows: array<vec4<f32>>;
// The group of each tensor.
@group(0) @binding(3) var<storage, read> groups: array<u32>;

fn finish(owner: u32, thread: u32) {
    let group = groups[owner];
    let found = trust_ratio(row(group), norm_of(totals[0], 1.0), norm_of(totals[1], 1.0));
    if thread < ROW {
        var x = rows[HEAD + group * ROW + thread];
        if thread == RATIO / 4u {
            x[RATIO % 4u] = found;
        }
        tensor_rows[HEAD + owner * ROW + thread] = x;
    }
    if owner == 0u && thread < HEAD {
        tensor_rows[thread] = rows[thread];
    }
}
