// What stands before the segments in a table.

struct Header {
    // Segments in the table.
    segments: u32,
    // A segment takes 1 << shift workgroups.
    shift: u32,
    // Workgroups in a row of the 2-D dispatch.
    stride: u32,
    // Where vector 0 lies in the bound parameters and gradients: in vectors, or in elements where they are
    // loaded one by one.
    p: u32,
    g: u32,
    // Last element of the bound parameters and gradients, where they are loaded one by one.
    p_last: u32,
    g_last: u32,
    // Where the partial sums of the reduction of these gradients begin.
    partials: u32,
    // Where the scales of state in blocks begin, in words.
    scales: u32,
}
