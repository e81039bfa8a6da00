// Adan: adaptive Nesterov momentum from the difference of gradients; bias corrections are folded into steps
// and eps.

fn update(s: Scalars, at: At) {
    let d = s.sign * read_g(at);
    let difference = select(vec4<f32>(0.0), d - read_pre_grad(at), on(s.later));
    write_pre_grad(at, d);
    let m = toward(read_exp_avg(at), d, s.one_minus_beta1, s.beta1);
    write_exp_avg(at, m);
    let v = toward(read_exp_avg_diff(at), difference, s.one_minus_beta2, s.beta2);
    write_exp_avg_diff(at, v);
    let ahead = d + s.ahead * difference;
    let n = s.beta3 * read_exp_avg_sq(at) + s.one_minus_beta3 * ahead * ahead;
    write_exp_avg_sq(at, n);
    let step = (s.mean * m + s.trend * v) / (sqrt(n + s.eps_root) + s.eps);
    let p = read_p(at);
    write_p(at, p - (weighted(s.decay, p) + step));
}
