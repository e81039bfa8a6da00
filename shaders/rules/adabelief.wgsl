// AdaBelief: Adam with the gradient's variance about its mean in place of its mean square.

fn update(s: Scalars, at: At) {
    let d = s.sign * read_g(at);
    let m = toward(read_exp_avg(at), d, s.one_minus_beta1, s.beta1);
    write_exp_avg(at, m);
    let error = d - m;
    let v = s.beta2 * read_exp_avg_sq(at) + s.one_minus_beta2 * error * error + s.eps_root;
    write_exp_avg_sq(at, v);
    let p = read_p(at);
    write_p(at, p - (weighted(s.decay, p) + s.step_size * m / (sqrt(v) + s.eps)));
}
