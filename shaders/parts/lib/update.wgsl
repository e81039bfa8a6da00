// The frame around the rule's update of one vector.

// The first vector of the step's scalars: factor of the gradients, whether the step is skipped, and the bound
// of the gradients in the last component.
var<private> step_header: vec4<f32>;
// The factor of the vector's gradients.
var<private> factor: Number;

fn prepare(s: Scalars) {
    step_header = rows[0];
    prepare_factor(s);
    prepare_average(s);
    prepare_random();
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
