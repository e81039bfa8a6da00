// No value is rounded stochastically.

fn prepare_random() {}

fn locate(segment: u32, i: u32) {}

fn random(nth: u32) -> vec4<u32> {
    return vec4<u32>();
}
