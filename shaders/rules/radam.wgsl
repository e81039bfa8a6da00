// RAdam: Adam with a rectified step, or without the divisor while the divisor's variance is unknown.

fn update(s: Scalars, at: At) {
    let p = read_p(at);
    let d = s.sign * read_g(at) + weighted(s.weight_decay, p);
    let m = toward(read_exp_avg(at), d, s.one_minus_beta1, s.beta1);
    write_exp_avg(at, m);
    let v = s.beta2 * read_exp_avg_sq(at) + s.one_minus_beta2 * d * d;
    write_exp_avg_sq(at, v);
    let step = s.step_size * m;
    let rectified = select(step, step / (sqrt(v) + s.eps), on(s.rectified));
    write_p(at, p - (weighted(s.decay, p) + rectified));
}
