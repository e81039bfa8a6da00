// For kernels in which a workgroup takes a tile and its threads go round it.

fn number_of(workgroup: vec3<u32>) -> u32 {
    return workgroup.y * table.header.stride + workgroup.x;
}

fn record_of(number: u32) -> Record {
    return record_at(min(number, table.header.records - 1u));
}

// None for workgroups past the table, in the last row of a 2-D dispatch.
fn rounds_of(number: u32, record: Record) -> u32 {
    return select(0u, (record.quads + WORKGROUP_SIZE - 1u) / WORKGROUP_SIZE, number < table.header.records);
}

// The quad of a thread in round `j`. Eight threads read 128 bytes side by side, a cache line, and the next
// ones in the next round: on a CPU, where they run one group of threads after the other, that is a stream.
fn quad_of(thread: u32, j: u32, rounds: u32) -> u32 {
    return ((thread >> 3u) * rounds + j) * 8u + (thread & 7u);
}
