// Squares of the parameters before the update, and of the update.

var<private> of_p: Squares;
var<private> of_u: Squares;

fn measure(at: At, x: vec4<f32>) {
    of_p = squares(of_p, own_bits(at, value_p));
    of_u = squares(of_u, own_bits(at, x - value_p));
}

// A skipped step adds nothing to the parameters.
fn rest_norms(at: At) {
    fetch_p(at);
    of_p = squares(of_p, own_bits(at, take_p()));
}
