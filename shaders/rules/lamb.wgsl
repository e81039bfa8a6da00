// LAMB: Adam's step with decoupled decay, in proportion to the norm of each tensor.

fn direction(s: Scalars, at: At, p: vec4<f32>) -> vec4<f32> {
    let d = s.sign * read_g(at);
    let m = toward(read_exp_avg(at), d, s.one_minus_beta1, s.beta1);
    write_exp_avg(at, m);
    let v = s.beta2 * read_exp_avg_sq(at) + s.one_minus_beta2 * d * d;
    write_exp_avg_sq(at, v);
    return s.mean_scale * m / (sqrt(v) + s.eps) + weighted(s.weight_decay, p);
}

fn trust_ratio(s: GroupScalars, p_norm: f32, u_norm: f32) -> f32 {
    return select(p_norm / u_norm, 1.0, s.adapts == 0.0 || p_norm == 0.0 || u_norm == 0.0);
}

fn update(s: Scalars, at: At) {
    let p = read_p(at);
    let u = direction(s, at, p);
    write_p(at, p - s.lr * s.ratio * u);
}
