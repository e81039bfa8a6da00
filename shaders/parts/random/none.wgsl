// No value is rounded stochastically.

fn prepare_random() {}

fn locate(segment: u32, i: u32) {}

fn random(nth: u32) -> vec4<u32> {
    // Not `vec4<u32>()`: naga 30 writes the zero of a type once for each of its names in HLSL, F32 being one.
    return vec4(0u);
}
