// The frame around the rule's update of one vector.

// The first vector of the step's scalars: factor of the gradients, whether the step is skipped, and the bound
// of the gradients in the last component.
var<private> step_header: vec4<f32>;
// The factor of the vector's gradients, and the rest of a factor that is not a normal number.
var<private> factor: Number;
var<private> rest: Number;

fn prepare(s: Scalars) {
    step_header = step_scalars[0];
    prepare_factor(s);
    prepare_average(s);
    prepare_random();
}

// A factor beyond the normal numbers is sent with a negative sign, times 2¹⁰⁰ if it is small or 2⁻¹⁰⁰ if it
// is large.
fn split_factor(x: Number) {
    factor = x;
    if SPLITS {
        factor = abs(x);
        let beyond = select(Number(0x1p100f), Number(0x1p-100f), factor < Number(1.0));
        rest = select(Number(1.0), beyond, x < Number(0.0));
    }
}

fn skipped() -> bool {
    return SKIPS && step_header.y > 0.0;
}

fn read_p(at: At) -> vec4<f32> {
    if !LOADS_FIRST {
        fetch_p(at);
    }
    return take_p();
}

fn update_vector(s: Scalars, at: At) {
    if skipped() {
        rest_g(at);
        rest_norms(at);
    } else {
        if LOADS_FIRST {
            fetch(at);
        }
        update(s, at);
    }
}
