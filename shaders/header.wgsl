// What stands before the tiles in a table.

struct Header {
    // Tiles in the table.
    records: u32,
    // A tile takes 1 << shift workgroups.
    shift: u32,
    // Workgroups in a row of the 2-D dispatch.
    stride: u32,
    // Where quad 0 lies in the bound parameters and gradients: in quads, or in elements where they are loaded
    // one by one.
    p: u32,
    g: u32,
    // Last element of the bound parameters and gradients, where they are loaded one by one.
    p_last: u32,
    g_last: u32,
    // Where the partial results of the reduction of these gradients begin.
    partials: u32,
    // Where the scales of state in blocks begin, in words.
    scales: u32,
}
