// Lion: steps by the sign of an interpolation. sign(0) is 0.

fn update(s: Scalars, at: At) {
    let d = s.sign * read_g(at);
    let m = read_exp_avg(at);
    let c = s.beta1 * m + s.one_minus_beta1 * d;
    write_exp_avg(at, toward(m, d, s.one_minus_beta2, s.beta2));
    let p = read_p(at);
    write_p(at, p - (weighted(s.decay, p) + s.lr * sign_of(c)));
}
