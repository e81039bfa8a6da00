// Tiles whose four lanes may belong to different groups, or to none: quads that tensors share with each other or with padding.

struct Record {
    // First quad in the parameters and gradients.
    quad: u32,
    // First quad in the state.
    state: u32,
    quads: u32,
    pad: u32,
    // The group of each lane, NONE for padding.
    lanes: vec4<u32>,
}

const NONE = 0xffffffffu;

fn scalars(record: Record) -> Scalars {
    let group = min(record.lanes, vec4<u32>(ROWS - 1u));
    return blend(row(group.x), row(group.y), row(group.z), row(group.w));
}

fn keep(record: Record, old: vec4<u32>, next: vec4<u32>) -> vec4<u32> {
    return select(old, next, record.lanes != vec4<u32>(NONE));
}
