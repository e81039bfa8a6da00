// RMSprop, centered or not, with or without momentum.

fn update(s: Scalars, at: At) {
    let p = read_p(at);
    let d = s.sign * read_g(at) + weighted(s.weight_decay, p);
    let v = s.alpha * read_square_avg(at) + s.one_minus_alpha * d * d;
    write_square_avg(at, v);
    let zero = vec4<f32>(0.0);
    var mean = zero;
    if KEEPS_GRAD_AVG {
        let centered = on(s.centered);
        let old = read_grad_avg(at);
        let moved = toward(old, d, s.one_minus_alpha, s.alpha);
        mean = select(zero, moved, centered);
        write_grad_avg(at, select(old, mean, centered));
    }
    // A variance. Rounding must not make it negative, and two overflows must not make it zero.
    let variance = max(v - min(mean * mean, vec4<f32>(0x1.fffffep+127f)), zero);
    var step = d / (sqrt(variance + s.eps_root) + s.eps);
    if KEEPS_MOMENTUM_BUFFER {
        let moving = on(s.momentum);
        let old = read_momentum_buffer(at);
        let b = s.momentum * old + step;
        write_momentum_buffer(at, select(old, b, moving));
        step = select(step, b, moving);
    }
    write_p(at, p - s.lr * step);
}
