// For kernels in which a workgroup takes a segment and loops over it.

fn number_of(workgroup: vec3<u32>) -> u32 {
    return workgroup.y * table.header.stride + workgroup.x;
}

fn segment_of(number: u32) -> Segment {
    return segment_at(min(number, table.header.segments - 1u));
}

// No segment for workgroups past the table, in the last row of a 2-D dispatch.
fn rounds_of(number: u32, segment: Segment) -> u32 {
    let rounds = (segment.vectors + WORKGROUP_SIZE - 1u) / WORKGROUP_SIZE;
    return select(0u, rounds, number < table.header.segments);
}

// The vector of a thread in round `j`. STREAM threads read adjacent vectors, and the next vectors in the next
// round.
fn vector_of(thread: u32, j: u32, rounds: u32) -> u32 {
    return ((thread / STREAM) * rounds + j) * STREAM + thread % STREAM;
}
