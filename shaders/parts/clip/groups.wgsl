// Each group's gradients have their own factor.

fn prepare_factor(s: Scalars) {
    split_factor(s.gradient_factor);
}
