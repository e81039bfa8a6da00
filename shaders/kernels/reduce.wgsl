// The squares of the gradients: one workgroup and one partial sum per segment.

@compute @workgroup_size(WORKGROUP_SIZE)
fn reduce(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let number = number_of(workgroup);
    let segment = segment_of(number);
    let rounds = rounds_of(number, segment);
    var sum = Squares();
    for (var j = 0u; j < rounds; j++) {
        let i = vector_of(thread, j, rounds);
        // No branch: software Vulkan would read uniform data once per lane inside one.
        let at = place(segment, min(i, segment.vectors - 1u));
        let bits = own_bits(at, decode_FORMAT(load_g(at)));
        sum = squares(sum, select(vec4<u32>(0u), bits, i < segment.vectors));
    }
    let all = of_workgroup(thread, Partials(of_thread(sum)));
    if thread == 0u {
        partials[table.header.partials + number] = all[0];
    }
}
