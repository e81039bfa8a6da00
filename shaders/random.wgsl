// Random numbers from a counter: the same for the same key, element and value, in whatever order and on whatever device.

// Four 32-bit numbers for the lanes of a quad, for the `nth` value of each element. The hash is PCG4D (Jarzynski and Olano, Hash Functions for GPU Rendering, 2020),
// whose upper halves are folded into the lower ones once more.
fn random(at: At, nth: u32) -> vec4<u32> {
    let part = vec4<u32>(key);
    var v = vec4<u32>(at.quad + table.header.flat, part.x | (part.y << 16u), part.z, nth);
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
