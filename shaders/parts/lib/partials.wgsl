// A workgroup's sums of the squares of parameters and update: a pair of partial sums.

fn conclude(number: u32, thread: u32, of_p: Squares, of_u: Squares) {
    let place = 2u * (table.header.partials + number);
    let all_p = of_workgroup(thread, of_thread(of_p));
    let all_u = of_workgroup(thread, of_thread(of_u));
    if thread == 0u {
        partials[place] = all_p;
        partials[place + 1u] = all_u;
    }
}
