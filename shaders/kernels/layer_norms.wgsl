// The first phase of a layer-wise rule: squares of the parameters and of the update direction. A workgroup
// takes a segment, which belongs to one tensor, and writes one pair of partial sums.

@compute @workgroup_size(WORKGROUP_SIZE)
fn layer_norms(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let number = number_of(workgroup);
    let segment = segment_of(number);
    let rounds = rounds_of(number, segment);
    let s = scalars(segment, place(segment, 0u));
    prepare(s);
    var of_p = Squares();
    var of_u = Squares();
    for (var j = 0u; j < rounds; j++) {
        let i = vector_of(thread, j, rounds);
        let at = place(segment, min(i, segment.vectors - 1u));
        if LOADS_FIRST {
            fetch(at);
        }
        let p = read_p(at);
        let u = direction(s, at, p);
        let inside = i < segment.vectors;
        of_p = squares(of_p, select(vec4<u32>(0u), own_bits(at, p), inside));
        of_u = squares(of_u, select(vec4<u32>(0u), own_bits(at, u), inside));
    }
    conclude(number, thread, of_p, of_u);
}
