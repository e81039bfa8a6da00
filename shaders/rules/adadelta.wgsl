// Adadelta: steps in units of the root mean square of earlier steps.

fn update(s: Scalars, at: At) {
    let p = read_p(at);
    let d = s.sign * read_g(at) + weighted(s.weight_decay, p);
    let v = s.rho * read_square_avg(at) + s.one_minus_rho * d * d;
    write_square_avg(at, v);
    let u = read_acc_delta(at);
    let delta = sqrt(u + s.eps) / sqrt(v + s.eps) * d;
    write_acc_delta(at, s.rho * u + s.one_minus_rho * delta * delta);
    write_p(at, p - s.lr * delta);
}
