// The same with the norms of the parameters and of what is added to them: a pair of partial results a tile,
// which is a workgroup's.

@compute @workgroup_size(WORKGROUP_SIZE)
fn step(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let number = number_of(workgroup);
    let record = record_of(number);
    let rounds = rounds_of(number, record);
    for (var j = 0u; j < rounds; j++) {
        let i = quad_of(thread, j, rounds);
        let at = place(record, min(i, record.quads - 1u));
        let s = scalars(record, at);
        prepare(s);
        locate(min(number, table.header.records - 1u), i);
        if i < record.quads {
            if skipped() {
                rest(at);
            } else {
                update(s, at);
            }
        }
        settle(at, i < record.quads && !skipped(), thread);
    }
    conclude(number, thread, of_p, of_u);
}
