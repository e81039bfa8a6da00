// The gradients of each group have a factor of their own.

fn prepare_factor(s: Scalars) {
    factor = s.gradient_factor;
}
