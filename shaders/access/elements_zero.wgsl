// Sets a quad's gradients to zero, but for lanes that are no tensor's.

fn zero_g(at: At, raw: vec4<u32>) {
    let i = elements(at.quad, table.header.g, table.header.g_last);
    let lanes = at.lanes;
    if lanes.x != NONE { g_buffer[i.x] = 0u; }
    if lanes.y != NONE { g_buffer[i.y] = 0u; }
    if lanes.z != NONE { g_buffer[i.z] = 0u; }
    if lanes.w != NONE { g_buffer[i.w] = 0u; }
}
