// RMSprop, centered or not, with or without momentum.

fn update(s: Scalars, at: At) {
    let p = read_p(at);
    let d = s.sign * read_g(at) + weighted(s.weight_decay, p);
    let v = s.alpha * read_square_avg(at) + s.one_minus_alpha * d * d;
    write_square_avg(at, v);
    let zero = vec4<f32>(0.0);
    let centered = on(s.centered);
    let mean_old = read_grad_avg(at);
    let moved = toward(mean_old, d, s.one_minus_alpha, s.alpha);
    let mean = select(zero, moved, centered);
    write_grad_avg(at, select(mean_old, mean, centered));
    // A variance: rounding must not make it negative, nor two overflows a zero.
    let variance = max(v - min(mean * mean, vec4<f32>(0x1.fffffep+127f)), zero);
    let step = d / (sqrt(variance + s.eps_root) + s.eps);
    let moving = on(s.momentum);
    let b_old = read_momentum_buffer(at);
    let b = s.momentum * b_old + step;
    write_momentum_buffer(at, select(b_old, b, moving));
    write_p(at, p - s.lr * select(step, b, moving));
}
