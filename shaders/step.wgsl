// The one element-wise driver: it finds each thread's quad (four elements, one vec4) and has the rule update it.
//
// A dispatch is a table of tiles. A tile is a run of quads that lie side by side in the parameters, in the gradients and in
// the state; each takes 1 << shift workgroups, so a workgroup finds its tile by a shift.

// For rules: w · x, and 0 where w is 0. What has no weight is not even multiplied by 0, for it may be infinite.
fn weighted(w: vec4<f32>, x: vec4<f32>) -> vec4<f32> {
    return select(vec4<f32>(0.0), w * x, on(w));
}

// For rules: w · next + (1 − w) · old, in the form that does not cancel; `rest` is 1 − w.
fn toward(old: vec4<f32>, next: vec4<f32>, w: vec4<f32>, rest: vec4<f32>) -> vec4<f32> {
    let d = next - old;
    return select(old + w * d, next - rest * d, w >= vec4<f32>(0.5));
}

// For rules: the sign, 0 of a zero, and of what is no number that itself.
fn sign_of(x: vec4<f32>) -> vec4<f32> {
    let nan = (bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
    return select(sign(x), x, nan);
}

// For rules: where an option's scalar is set.
fn on(w: vec4<f32>) -> vec4<bool> {
    return w > vec4<f32>(0.0);
}

@compute @workgroup_size(WORKGROUP_SIZE)
fn step(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let number = workgroup.y * table.header.stride + workgroup.x;
    // The last row of a 2-D dispatch may reach past the table; those workgroups find i >= quads below.
    let nth = select(min(number >> table.header.shift, table.header.records - 1u), 0u, SINGLE);
    let record = table.records[nth];
    let i = (number - (nth << table.header.shift)) * WORKGROUP_SIZE + thread;
    // Before the branch: software Vulkan reads uniform data once for all lanes only outside of one.
    let at = place(record, i);
    let s = scalars(record, at);
    prepare();
    if i < record.quads {
        if skipped() {
            rest(at);
        } else {
            update(s, at);
        }
    }
}
