// Gradients are not changed.

fn zero_g(at: At) {}

fn rest_g(at: At) {}
