// No average of the weights.

fn prepare_average(s: Scalars) {}

fn fetch_average(at: At) {}

fn average(at: At, x: vec4<f32>) {}
