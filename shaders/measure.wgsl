// The first phase of a layer-wise rule: squares of the parameters and of the rule's direction, a pair of
// partial results a tile, which is a workgroup's and of one tensor.

@compute @workgroup_size(WORKGROUP_SIZE)
fn measure(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let number = number_of(workgroup);
    let record = record_of(number);
    let rounds = rounds_of(number, record);
    let s = scalars(record, place(record, 0u));
    prepare(s);
    var of_p = Squares();
    var of_u = Squares();
    for (var j = 0u; j < rounds; j++) {
        let i = quad_of(thread, j, rounds);
        let at = place(record, min(i, record.quads - 1u));
        let p = read_p(at);
        let u = direction(s, at, p);
        let outside = vec4<u32>(0u);
        of_p = squares(of_p, select(outside, keep(at, outside, bitcast<vec4<u32>>(p)), i < record.quads));
        of_u = squares(of_u, select(outside, keep(at, outside, bitcast<vec4<u32>>(u)), i < record.quads));
    }
    conclude(number, thread, of_p, of_u);
}
