// No norms of parameters and update.

fn measure(at: At, x: vec4<f32>) {}

fn rest_norms(at: At) {}
