// Parameters and gradients whose quads are aligned in their buffers: one vec4 a quad.

alias Stored = vec4<u32>;

fn load_p(at: At) -> vec4<u32> {
    return p_buffer[at.quad + table.header.p];
}

fn load_g(at: At) -> vec4<u32> {
    return g_buffer[at.quad + table.header.g];
}

fn store_p(at: At, next: vec4<u32>) {
    p_buffer[at.quad + table.header.p] = next;
}
