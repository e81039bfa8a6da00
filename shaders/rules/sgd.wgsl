// Stochastic gradient descent with momentum (PyTorch's form: learning rate outside the velocity).

fn update(s: Scalars, at: At) {
    let p = read_p(at);
    let d = s.sign * read_g(at) + s.weight_decay * p;
    let b = s.momentum * read_momentum_buffer(at) + s.gain * d;
    write_momentum_buffer(at, b);
    let ahead = select(b, d + s.lookahead * b, vec4<f32>(s.lookahead) > vec4<f32>(0.0));
    write_p(at, p - s.lr * select(d, ahead, vec4<f32>(s.velocity) > vec4<f32>(0.0)));
}
