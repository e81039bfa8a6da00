// All gradients have one factor: unscaling, times the clip of the global norm.

fn prepare_factor(s: Scalars) {
    split_factor(Number(step_header.x));
}
