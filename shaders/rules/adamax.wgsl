// Adamax: Adam with a decaying maximum in place of the root mean square.

fn update(s: Scalars, at: At) {
    let p = read_p(at);
    let d = s.sign * read_g(at) + weighted(s.weight_decay, p);
    let m = toward(read_exp_avg(at), d, s.one_minus_beta1, s.beta1);
    write_exp_avg(at, m);
    let u = max(s.beta2 * read_exp_inf(at), abs(d) + s.eps);
    write_exp_inf(at, u);
    write_p(at, p - s.step_size * m / (u + s.eps_after));
}
