// Sets a quad's gradients to zero, but for lanes that are no tensor's.

fn zero_g(at: At, raw: vec4<u32>) {
    g_buffer[at.quad + table.header.g] = keep(at, raw, vec4<u32>(0u));
}
