// Sum of squares of the gradients, and whether all of them are finite: a partial result a workgroup, without atomics, so that two runs
// are equal to the last bit.

// The step's workgroups whose quads one workgroup looks at.
const RUN = 16u;

struct Partial {
    sum: f32,
    // Bit 0: some gradient is infinite. Bit 1: some is NaN.
    flags: u32,
}

@group(0) @binding(2) var<storage, read_write> partials: array<Partial>;

var<workgroup> sums: array<f32, WORKGROUP_SIZE>;
var<workgroup> flags: array<u32, WORKGROUP_SIZE>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn reduce(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = workgroup.y * count.x + workgroup.x;
    var squares = vec4<f32>();
    var largest = vec4<u32>();
    for (var j = 0u; j < RUN; j++) {
        let number = block * RUN + j;
        let nth = select(min(number >> table.header.shift, table.header.records - 1u), 0u, SINGLE);
        let record = table.records[nth];
        let i = (number - (nth << table.header.shift)) * WORKGROUP_SIZE + thread;
        // No branch: software Vulkan would read uniform data a lane at a time in it.
        let at = place(record, min(i, record.quads - 1u));
        let raw = select(vec4<u32>(0u), keep(at, vec4<u32>(0u), load_g(at)), i < record.quads);
        // On the bits: arithmetic may assume that there is neither.
        largest = max(largest, raw & vec4<u32>(0x7fffffffu));
        let x = decode_f32(raw);
        squares += x * x;
    }
    var sum = (squares.x + squares.y) + (squares.z + squares.w);
    let infinite = any(largest == vec4<u32>(0x7f800000u));
    let nan = any(largest > vec4<u32>(0x7f800000u));
    var flag = select(0u, 1u, infinite) | select(0u, 2u, nan);
    sums[thread] = sum;
    flags[thread] = flag;
    workgroupBarrier();
    // Two rounds of 16: software Vulkan pays for barriers.
    if thread < 16u {
        for (var k = 1u; k < 16u; k++) {
            sum += sums[thread + 16u * k];
            flag |= flags[thread + 16u * k];
        }
    }
    workgroupBarrier();
    if thread < 16u {
        sums[thread] = sum;
        flags[thread] = flag;
    }
    workgroupBarrier();
    if thread == 0u {
        for (var k = 1u; k < 16u; k++) {
            sum += sums[k];
            flag |= flags[k];
        }
        partials[table.header.partials + block] = Partial(sum, flag);
    }
}
