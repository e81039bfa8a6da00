// The device's state between steps, which also is the host's report.
struct State {
    // The loss scale. It comes first, so that an engine can bind the buffer to read it.
    scale: f32,
    // Steps in a row without an overflow.
    good: u32,
    // Steps taken so far: recorded, run, and not skipped.
    taken: u32,
    // The last step: its number, whether its gradients were finite, their norm, clip factor and loss scale.
    number: u32,
    flags: u32,
    norm: f32,
    factor: f32,
    used_scale: f32,
    // Norms of the parameters before the step, and of the update.
    param_norm: f32,
    update_norm: f32,
    // The epoch: the last state that the host has set. A report with another epoch was not written.
    epoch: u32,
    // 1 after a step has run after a step that was recorded later.
    disordered: u32,
}

// The number before the first step.
const NO_STEP = 0xffffffffu;
