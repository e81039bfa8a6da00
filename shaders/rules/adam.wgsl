// Adam with L2 or decoupled decay, and AMSGrad; the bias correction of the root is folded into step_size and
// eps.

fn update(s: Scalars, at: At) {
    let p = read_p(at);
    let d = s.sign * read_g(at) + weighted(s.weight_decay, p);
    let m = toward(read_exp_avg(at), d, s.one_minus_beta1, s.beta1);
    write_exp_avg(at, m);
    let v = s.beta2 * read_exp_avg_sq(at) + s.one_minus_beta2 * d * d;
    write_exp_avg_sq(at, v);
    var w = v;
    if KEEPS_MAX_EXP_AVG_SQ {
        let amsgrad = on(s.max_scale);
        let top = read_max_exp_avg_sq(at);
        w = select(v, max(top, s.max_scale * v), amsgrad);
        write_max_exp_avg_sq(at, select(top, w, amsgrad));
    }
    write_p(at, p - (weighted(s.decay, p) + s.step_size * m / (sqrt(w) + s.eps)));
}
