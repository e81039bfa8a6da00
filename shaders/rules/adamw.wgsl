// AdamW: decoupled weight decay; √(1 − β₂ᵗ) is folded into step_size and eps.

fn update(s: Scalars, q: Quad) -> Quad {
    let d = s.sign * q.g;
    let m = q.exp_avg + s.one_minus_beta1 * (d - q.exp_avg);
    let v = s.beta2 * q.exp_avg_sq + s.one_minus_beta2 * d * d;
    var next = q;
    next.p = q.p - (s.decay * q.p + s.step_size * m / (sqrt(v) + s.eps));
    next.exp_avg = m;
    next.exp_avg_sq = v;
    return next;
}
