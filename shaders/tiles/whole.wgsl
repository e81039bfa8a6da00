// Tiles of whole quads, each of one group.

struct Record {
    // First quad in the parameters and gradients.
    quad: u32,
    // First quad in the state.
    state: u32,
    quads: u32,
    group: u32,
}

alias Scalars = Row;

fn scalars(record: Record) -> Scalars {
    return row(record.group);
}

fn keep(record: Record, old: vec4<u32>, next: vec4<u32>) -> vec4<u32> {
    return next;
}
