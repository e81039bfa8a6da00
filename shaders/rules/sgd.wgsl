// Stochastic gradient descent with momentum; the scalars make it the heavy ball, the classic or the averaged
// form.

fn update(s: Scalars, at: At) {
    let p = read_p(at);
    let d = s.sign * read_g(at) + weighted(vec4<f32>(s.weight_decay), p);
    let old = read_momentum_buffer(at);
    let moving = on(vec4<f32>(s.velocity));
    let b = select(old, weighted(vec4<f32>(s.momentum), old) + s.gain * d, moving);
    write_momentum_buffer(at, b);
    let ahead = select(b, s.own * d + s.lookahead * b, on(vec4<f32>(s.lookahead)));
    write_p(at, p - s.rate * select(d, ahead, moving));
}
