// Stochastic gradient descent with momentum (PyTorch's form: learning rate outside the velocity).

fn update(s: Scalars, at: At) {
    let p = read_p(at);
    let zero = vec4<f32>(0.0);
    // What has no weight is not even multiplied by 0: it may be infinite.
    let decay = select(zero, s.weight_decay * p, vec4<f32>(s.weight_decay) > zero);
    let d = s.sign * read_g(at) + decay;
    let old = read_momentum_buffer(at);
    let moving = vec4<f32>(s.velocity) > zero;
    let decayed = select(zero, s.momentum * old, vec4<f32>(s.momentum) > zero);
    let b = select(old, decayed + s.gain * d, moving);
    write_momentum_buffer(at, b);
    let ahead = select(b, d + s.lookahead * b, vec4<f32>(s.lookahead) > zero);
    write_p(at, p - s.lr * select(d, ahead, moving));
}
