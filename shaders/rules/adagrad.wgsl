// AdaGrad: divides by the root of the sum of all squares.

fn update(s: Scalars, at: At) {
    let p = read_p(at);
    let d = s.sign * read_g(at) + weighted(s.weight_decay, p);
    let sum = read_sum(at) + s.initial + d * d;
    write_sum(at, sum);
    write_p(at, p - s.lr * d / (sqrt(sum + s.eps_root) + s.eps));
}
