// Sums of squares of the gradients, of large, middle and tiny ones apart so that none overflows or is lost, and whether all of them are finite: a partial result a workgroup, without atomics, so that two runs
// are equal to the last bit.

// The step's workgroups whose quads one workgroup looks at.
const RUN = 16u;

// Sums of squares: of numbers from 2⁴⁰ on, each times 2⁻⁸⁰; of those between; of those below 2⁻⁴⁰, each times 2⁸⁰.
struct Partial {
    large: f32,
    middle: f32,
    tiny: f32,
    // Bit 0: some gradient is infinite. Bit 1: some is NaN.
    flags: u32,
}

// In the exponent's bits: a product with 2⁻⁸⁰ might be squared first, and then be zero.
const LARGE = (127u + 40u) << 23u;
const TINY = (127u - 40u) << 23u;
const SHIFT = 80u << 23u;
const NORMAL = 1u << 23u;

@group(0) @binding(2) var<storage, read_write> partials: array<Partial>;

var<workgroup> sums: array<vec3<f32>, WORKGROUP_SIZE>;
var<workgroup> flags: array<u32, WORKGROUP_SIZE>;

@compute @workgroup_size(WORKGROUP_SIZE)
fn reduce(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = workgroup.y * count.x + workgroup.x;
    var large = vec4<f32>();
    var middle = vec4<f32>();
    var tiny = vec4<f32>();
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
        let x = bitcast<vec4<u32>>(decode_f32(raw)) & vec4<u32>(0x7fffffffu);
        let zero = vec4<u32>(0u);
        let is_large = x >= vec4<u32>(LARGE);
        let is_tiny = x < vec4<u32>(TINY);
        let a = bitcast<vec4<f32>>(select(zero, x - vec4<u32>(SHIFT), is_large));
        let b = bitcast<vec4<f32>>(select(x, zero, is_large | is_tiny));
        let c = bitcast<vec4<f32>>(select(zero, x + vec4<u32>(SHIFT), is_tiny & (x >= vec4<u32>(NORMAL))));
        large += a * a;
        middle += b * b;
        tiny += c * c;
    }
    let ones = vec4<f32>(1.0);
    var sum = vec3<f32>(dot(large, ones), dot(middle, ones), dot(tiny, ones));
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
        partials[table.header.partials + block] = Partial(sum.x, sum.y, sum.z, flag);
    }
}
