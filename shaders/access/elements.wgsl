// Parameters or gradients that start or end inside a vec4 of their buffers: four elements one by one.

alias Stored = u32;

// The elements of a quad. Lanes of padding may lie outside of the buffer, before it (wrapped) or behind it: they read its last element.
fn elements(quad: u32, base: u32, last: u32) -> vec4<u32> {
    return min(vec4<u32>(4u * quad + base) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(last));
}

fn load_p(quad: u32) -> vec4<u32> {
    let at = elements(quad, table.header.p, table.header.p_last);
    return vec4<u32>(p_buffer[at.x], p_buffer[at.y], p_buffer[at.z], p_buffer[at.w]);
}

fn load_g(quad: u32) -> vec4<u32> {
    let at = elements(quad, table.header.g, table.header.g_last);
    return vec4<u32>(g_buffer[at.x], g_buffer[at.y], g_buffer[at.z], g_buffer[at.w]);
}

fn store_p(record: Record, quad: u32, next: vec4<u32>) {
    let at = elements(quad, table.header.p, table.header.p_last);
    if record.lanes.x != NONE { p_buffer[at.x] = next.x; }
    if record.lanes.y != NONE { p_buffer[at.y] = next.y; }
    if record.lanes.z != NONE { p_buffer[at.z] = next.z; }
    if record.lanes.w != NONE { p_buffer[at.w] = next.w; }
}
