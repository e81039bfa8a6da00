// Parameters and gradients whose quads are aligned in their buffers: one vec4 a quad.

alias Stored = vec4<u32>;

fn load_p(quad: u32) -> vec4<u32> {
    return p_buffer[quad + table.header.p];
}

fn load_g(quad: u32) -> vec4<u32> {
    return g_buffer[quad + table.header.g];
}

fn store_p(record: Record, quad: u32, next: vec4<u32>) {
    p_buffer[quad + table.header.p] = next;
}
