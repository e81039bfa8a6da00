// The header before the segments in a table.

struct Header {
    // Segments in the table.
    segments: u32,
    // A segment takes 1 << shift workgroups.
    shift: u32,
    // Workgroups in a row of the 2-D dispatch.
    stride: u32,
    // Position of vector 0 in the bound parameters and gradients: in vectors, or in elements if they are
    // loaded one by one.
    p: u32,
    g: u32,
    // Last element of the bound parameters and gradients, if they are loaded one by one.
    p_last: u32,
    g_last: u32,
    // Position of the first partial sum of this reduction.
    partials: u32,
    // Position of the first scale of state in blocks, in words.
    scales: u32,
}
