// LARS: gradient and decay in proportion to the norms of each tensor, then SGD's momentum.

fn direction(s: Scalars, at: At, p: vec4<f32>) -> vec4<f32> {
    return s.sign * read_g(at) + weighted(s.decay_within, p);
}

fn trust_ratio(s: GroupScalars, p_norm: f32, u_norm: f32) -> f32 {
    let divisor = u_norm + s.decay_beside * p_norm + s.eps;
    return select(s.trust_coefficient * p_norm / divisor, 1.0, p_norm == 0.0 || divisor == 0.0);
}

fn update(s: Scalars, at: At) {
    let p = read_p(at);
    let u = direction(s, at, p);
    let d = s.ratio * (u + weighted(s.decay_beside, p));
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
