// What the device remembers from step to step, and what the host is told.
struct State {
    // The loss scale. It comes first, so that an engine can bind the buffer for it.
    scale: f32,
    // Steps in a row without an overflow.
    good: u32,
    // Steps taken so far: recorded, run, and not skipped.
    taken: u32,
    // Of the last step: its number, what was found, norm, clip factor and the scale that its gradients had.
    number: u32,
    flags: u32,
    norm: f32,
    factor: f32,
    used_scale: f32,
    // Norms of the parameters before it, and of what it has added to them.
    param_norm: f32,
    update_norm: f32,
    // Which state the host has last had the device go on from. A report without it was not written.
    epoch: u32,
    // 1 once a step has run after one that was recorded later.
    disordered: u32,
}

// The number before the first step.
const NO_STEP = 0xffffffffu;
