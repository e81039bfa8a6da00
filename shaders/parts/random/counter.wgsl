// Random numbers from a counter: equal for equal key, tensor, element and value, in any order and place and
// on any device.

// The tensor's key; the thread's vector, counted from the tensor's first, times 4; and the lane of the
// tensor's first element in its vector.
var<private> element: vec2<u32>;
// The step's key, in three parts of 16 bits.
var<private> key: vec4<f32>;

fn prepare_random() {
    key = step_scalars[1];
}

fn locate(segment: u32, i: u32) {
    element = table.segments[segment].element + vec2<u32>(0u, 4u * i);
}

// Four 32-bit numbers for the `nth` value of four elements of the tensor. The hash is PCG4D (Jarzynski and
// Olano, Hash Functions for GPU Rendering, 2020), with the upper halves folded into the lower halves once
// more.
fn hashed(four: u32, nth: u32) -> vec4<u32> {
    let part = vec4<u32>(key);
    var v = vec4<u32>(four, part.x | (part.y << 16u), part.z | (nth << 16u), element.x);
    v = v * 1664525u + vec4<u32>(1013904223u);
    v.x += v.y * v.w;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    v.w += v.y * v.z;
    v ^= v >> vec4<u32>(16u);
    v.x += v.y * v.w;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    v.w += v.y * v.z;
    return v ^ (v >> vec4<u32>(16u));
}

// The numbers of the thread's vector. If the tensor begins inside a vector, the elements belong to two groups
// of four.
fn random(nth: u32) -> vec4<u32> {
    let four = element.y >> 2u;
    let next = hashed(four, nth);
    if ALIGNED {
        return next;
    }
    let last = hashed(four - 1u, nth);
    let first = element.y & 3u;
    let by_one = select(next, vec4<u32>(last.w, next.xyz), first == 1u);
    let by_two = select(by_one, vec4<u32>(last.zw, next.xy), first == 2u);
    return select(by_two, vec4<u32>(last.yzw, next.x), first == 3u);
}
