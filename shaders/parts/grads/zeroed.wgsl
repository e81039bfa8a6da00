// Gradients are set to zero after they are read, also in a skipped step.

fn zero_g(at: At) {
    store_g(at, KEEP(at, old_g, RAW()));
}

fn rest_g(at: At) {
    fetch_g(at);
    zero_g(at);
}
