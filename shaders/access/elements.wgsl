// Parameters or gradients that start or end inside a vec4 of their buffers: four elements one by one.

alias Stored = u32;

// The elements of a quad. Lanes of padding may lie outside of the buffer, before it (wrapped) or behind it: they read its last element.
fn elements(quad: u32, base: u32, last: u32) -> vec4<u32> {
    return min(vec4<u32>(4u * quad + base) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(last));
}

fn load_p(at: At) -> vec4<u32> {
    let i = elements(at.quad, table.header.p, table.header.p_last);
    return vec4<u32>(p_buffer[i.x], p_buffer[i.y], p_buffer[i.z], p_buffer[i.w]);
}

fn load_g(at: At) -> vec4<u32> {
    let i = elements(at.quad, table.header.g, table.header.g_last);
    return vec4<u32>(g_buffer[i.x], g_buffer[i.y], g_buffer[i.z], g_buffer[i.w]);
}

fn store_p(at: At, next: vec4<u32>) {
    let i = elements(at.quad, table.header.p, table.header.p_last);
    let lanes = at.lanes;
    if lanes.x != NONE { p_buffer[i.x] = next.x; }
    if lanes.y != NONE { p_buffer[i.y] = next.y; }
    if lanes.z != NONE { p_buffer[i.z] = next.z; }
    if lanes.w != NONE { p_buffer[i.w] = next.w; }
}
