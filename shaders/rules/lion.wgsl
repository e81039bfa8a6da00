// Lion: steps by the sign of an interpolation. sign(0) is 0.

fn update(s: Scalars, at: At) {
    let d = s.sign * read_g(at);
    let m = read_exp_avg(at);
    let c = s.beta1 * m + s.one_minus_beta1 * d;
    write_exp_avg(at, m + s.one_minus_beta2 * (d - m));
    let p = read_p(at);
    write_p(at, p - (weighted(vec4<f32>(s.decay), p) + s.lr * sign(c)));
}
