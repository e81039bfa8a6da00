// The gradients of each group have a factor of their own.

fn prepare_factor(s: Scalars) {
    split_factor(s.gradient_factor);
}
