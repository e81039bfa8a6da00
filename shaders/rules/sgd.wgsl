// Stochastic gradient descent with momentum (PyTorch's form: learning rate outside the velocity).

fn update(s: Scalars, q: Quad) -> Quad {
    let d = s.sign * q.g + s.weight_decay * q.p;
    let b = s.momentum * q.momentum_buffer + s.gain * d;
    let ahead = select(b, d + s.lookahead * b, vec4<f32>(s.lookahead) > vec4<f32>(0.0));
    var next = q;
    next.p = q.p - s.lr * select(d, ahead, vec4<f32>(s.velocity) > vec4<f32>(0.0));
    next.momentum_buffer = b;
    return next;
}
