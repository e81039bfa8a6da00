// The norms of parameters and update in a step.

@group(0) @binding(2) var<storage, read_write> state: State;

fn finish(index: u32, first: u32, step: u32, totals: Partials) {
    if first == 0u {
        state.param_norm = norm_of(totals[0]);
        state.update_norm = norm_of(totals[1]);
    }
}
