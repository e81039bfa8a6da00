// Gradients stay as they are.

fn zero_g(at: At) {}

fn rest_g(at: At) {}
