// The update of a step, with the norms of the parameters and of the update. A workgroup takes a segment,
// loops over it and writes one pair of partial sums.

@compute @workgroup_size(WORKGROUP_SIZE)
fn step(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let number = number_of(workgroup);
    let segment = segment_of(number);
    let rounds = rounds_of(number, segment);
    for (var j = 0u; j < rounds; j++) {
        let i = vector_of(thread, j, rounds);
        let at = place(segment, min(i, segment.vectors - 1u));
        let s = scalars(segment, at);
        prepare(s);
        locate(min(number, table.header.segments - 1u), i);
        if i < segment.vectors {
            update_vector(s, at);
        }
        store_blocks(at, i < segment.vectors && !skipped(), thread);
    }
    conclude(number, thread, of_p, of_u);
}
