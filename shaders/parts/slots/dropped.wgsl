// State slot `SLOT`, which the hyperparameters do not need. It has no memory.

fn read_SLOT(at: At) -> vec4<f32> {
    return vec4<f32>();
}

fn write_SLOT(at: At, x: vec4<f32>) {}
