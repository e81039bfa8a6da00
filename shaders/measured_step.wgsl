// The same with the norms of the parameters and of what is added to them: a pair of partial results a tile, which is a workgroup's.

@compute @workgroup_size(WORKGROUP_SIZE)
fn step(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let number = workgroup.y * table.header.stride + workgroup.x;
    let record = table.records[min(number, table.header.records - 1u)];
    // None for those past the table in the last row of a 2-D dispatch.
    let rounds = select(0u, rounds_of(record.quads), number < table.header.records);
    for (var j = 0u; j < rounds; j++) {
        let i = quad_of(thread, j, rounds);
        let at = place(record, min(i, record.quads - 1u));
        let s = scalars(record, at);
        prepare(s);
        if i < record.quads {
            if skipped() {
                rest(at);
            } else {
                update(s, at);
            }
        }
    }
    conclude(number, thread, of_p, of_u);
}
