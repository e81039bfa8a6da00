// Writes a workgroup's sums of the squares of parameters and update: a pair of partial sums.

fn conclude(number: u32, thread: u32, of_p: Squares, of_u: Squares) {
    let place = 2u * (table.header.partials + number);
    let all = of_workgroup(thread, Partials(of_thread(of_p), of_thread(of_u)));
    if thread == 0u {
        partials[place] = all[0];
        partials[place + 1u] = all[1];
    }
}
