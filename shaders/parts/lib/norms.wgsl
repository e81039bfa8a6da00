// Norms without overflow: squares of large, middle and tiny numbers are summed apart, and the test for finite
// numbers reads their bits. No atomics: two runs are equal to the last bit.

// Sums of squares: of numbers from 2⁴⁰ on, each times 2⁻⁸⁰; of numbers in between; of numbers below 2⁻⁴⁰,
// each times 2⁸⁰.
struct Partial {
    large: f32,
    middle: f32,
    tiny: f32,
    // Bit 0: a number is infinite. Bit 1: a number is NaN.
    flags: u32,
}

// The sums of one thread.
struct Squares {
    large: vec4<f32>,
    middle: vec4<f32>,
    tiny: vec4<f32>,
    // The bits of the largest magnitude.
    most: u32,
}

// In the exponent's bits: a compiler could square before a product with 2⁻⁸⁰, and get zero.
const LARGE = (127u + 40u) << 23u;
const TINY = (127u - 40u) << 23u;
const SHIFT = 80u << 23u;
const NORMAL = 1u << 23u;
const INFINITE = 0x7f800000u;

// From bits: a compiler may assume that no number is infinite or NaN.
fn squares(sum: Squares, bits: vec4<u32>) -> Squares {
    let x = bits & vec4<u32>(0x7fffffffu);
    let zero = vec4<u32>(0u);
    let is_large = x >= vec4<u32>(LARGE);
    let is_tiny = x < vec4<u32>(TINY);
    let a = bitcast<vec4<f32>>(select(zero, x - vec4<u32>(SHIFT), is_large));
    let b = bitcast<vec4<f32>>(select(x, zero, is_large | is_tiny));
    let most = max(max(x.x, x.y), max(x.z, x.w));
    let c = bitcast<vec4<f32>>(select(zero, x + vec4<u32>(SHIFT), is_tiny & (x >= vec4<u32>(NORMAL))));
    return Squares(sum.large + a * a, sum.middle + b * b, sum.tiny + c * c, max(sum.most, most));
}

// The sums of each of the kernel's quantities.
alias Partials = array<Partial, QUANTITIES>;

var<workgroup> sums: array<vec3<f32>, QUANTITIES * WORKGROUP_SIZE>;
var<workgroup> flags: array<u32, QUANTITIES * WORKGROUP_SIZE>;
var<workgroup> few_sums: array<vec3<f32>, QUANTITIES * 16>;
var<workgroup> few_flags: array<u32, QUANTITIES * 16>;

fn of_thread(s: Squares) -> Partial {
    let ones = vec4<f32>(1.0);
    let found = select(0u, 1u, s.most == INFINITE) | select(0u, 2u, s.most > INFINITE);
    return Partial(dot(s.large, ones), dot(s.middle, ones), dot(s.tiny, ones), found);
}

fn joined(a: Partial, b: Partial) -> Partial {
    return Partial(a.large + b.large, a.middle + b.middle, a.tiny + b.tiny, a.flags | b.flags);
}

// Adds the sums of all threads of the workgroup. Thread 0 gets the result.
fn of_workgroup(thread: u32, own: Partials) -> Partials {
    for (var q = 0u; q < QUANTITIES; q++) {
        sums[q * WORKGROUP_SIZE + thread] = vec3<f32>(own[q].large, own[q].middle, own[q].tiny);
        flags[q * WORKGROUP_SIZE + thread] = own[q].flags;
    }
    workgroupBarrier();
    // Two rounds of 16 for all quantities together. The second has its own memory, so that no thread waits
    // for another thread's reads: barriers are slow on software Vulkan.
    if thread < QUANTITIES * 16u {
        let first = (thread / 16u) * WORKGROUP_SIZE + thread % 16u;
        var sum = sums[first];
        var flag = flags[first];
        for (var k = 1u; k < 16u; k++) {
            sum += sums[first + 16u * k];
            flag |= flags[first + 16u * k];
        }
        few_sums[thread] = sum;
        few_flags[thread] = flag;
    }
    workgroupBarrier();
    var all: Partials;
    if thread == 0u {
        for (var q = 0u; q < QUANTITIES; q++) {
            var sum = few_sums[16u * q];
            var flag = few_flags[16u * q];
            for (var k = 1u; k < 16u; k++) {
                sum += few_sums[16u * q + k];
                flag |= few_flags[16u * q + k];
            }
            all[q] = Partial(sum.x, sum.y, sum.z, flag);
        }
    }
    return all;
}

// The norm, infinite beyond the range of an f32.
fn norm_of(sum: Partial) -> f32 {
    if sum.flags != 0u {
        return not_finite(sum.flags);
    }
    let root = root_of(sum);
    if root.shift == 0 {
        return root.x;
    }
    return root.x * select(0x1p-80f, 0x1p80f, root.shift > 0);
}

// Infinity or NaN, from the flags of a sum.
fn not_finite(flags: u32) -> f32 {
    return bitcast<f32>(INFINITE + ((flags & 2u) << 21u));
}

// The root of a sum with finite terms: x · 2^shift.
struct Root {
    x: f32,
    shift: i32,
}

fn root_of(sum: Partial) -> Root {
    // Roots first: their exponents have half the range of the squares' exponents.
    let large = sqrt(sum.large);
    let middle = sqrt(sum.middle);
    let tiny = sqrt(sum.tiny);
    if sum.large > 0.0 {
        return Root(together(large, middle * 0x1p-80f), 80);
    }
    if sum.middle > 0.0 {
        return Root(together(middle, tiny * 0x1p-80f), 0);
    }
    return Root(tiny, -80);
}

// √(a² + b²), a > 0.
fn together(a: f32, b: f32) -> f32 {
    let most = max(a, b);
    let ratio = min(a, b) / most;
    // If b adds nothing, skip its arithmetic.
    return select(most * sqrt(1.0 + ratio * ratio), most, ratio < 0x1p-13f);
}
