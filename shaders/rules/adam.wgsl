// Adam with L2 regularisation; √(1 − β₂ᵗ) is folded into step_size and eps.

fn update(s: Scalars, at: At) {
    let p = read_p(at);
    let zero = vec4<f32>(0.0);
    // Without weight decay a parameter is not even multiplied by 0: it may be infinite.
    let decay = select(zero, s.weight_decay * p, vec4<f32>(s.weight_decay) > zero);
    let d = s.sign * read_g(at) + decay;
    let m_old = read_exp_avg(at);
    let m = m_old + s.one_minus_beta1 * (d - m_old);
    write_exp_avg(at, m);
    let v = s.beta2 * read_exp_avg_sq(at) + s.one_minus_beta2 * d * d;
    write_exp_avg_sq(at, v);
    write_p(at, p - s.step_size * m / (sqrt(v) + s.eps));
}
