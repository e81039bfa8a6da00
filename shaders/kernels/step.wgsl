// The update of a step. Each thread finds its vector of four elements and calls the rule's update.
//
// A dispatch has a table of segments. A segment is a run of adjacent vectors in the parameters, in the
// gradients and in the state. It takes 1 << shift workgroups, so a workgroup finds its segment by a shift.

@compute @workgroup_size(WORKGROUP_SIZE)
fn step(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let number = workgroup.y * table.header.stride + workgroup.x;
    // The last row of a 2-D dispatch may reach past the table; those workgroups find i >= vectors below.
    let nth = select(min(number >> table.header.shift, table.header.segments - 1u), 0u, SINGLE);
    let segment = segment_at(nth);
    let i = (number - (nth << table.header.shift)) * WORKGROUP_SIZE + thread;
    let at = place(segment, i);
    // Before the branch: software Vulkan reads uniform data once for all lanes only outside of one.
    let s = scalars(segment, at);
    prepare(s);
    locate(nth, i);
    if i < segment.vectors {
        update_vector(s, at);
    }
    store_blocks(at, i < segment.vectors && !skipped(), thread);
}
