// Gradients are set to zero when they have been read, and in a skipped step too.

fn zero_g(at: At) {
    store_g(at, KEEP(at, old_g, RAW()));
}

fn rest_g(at: At) {
    fetch_g(at);
    zero_g(at);
}
