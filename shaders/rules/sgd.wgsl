// Stochastic gradient descent with momentum; the scalars make it the heavy ball, the classic or the averaged
// form.

fn update(s: Scalars, at: At) {
    let p = read_p(at);
    let d = s.sign * read_g(at) + weighted(s.weight_decay, p);
    var step = d;
    if KEEPS_MOMENTUM_BUFFER {
        let old = read_momentum_buffer(at);
        let moving = on(s.velocity);
        let b = select(old, weighted(s.momentum, old) + s.gain * d, moving);
        write_momentum_buffer(at, b);
        let ahead = select(b, s.own * d + s.lookahead * b, on(s.lookahead));
        step = select(d, ahead, moving);
    }
    write_p(at, p - s.rate * step);
}
