//! Statistics from a kernel's assembly, beside the compiler's.

/// The trips to memory that a thread makes one after another.
///
/// A trip is a run of vector-memory loads, in the order of the listing. A run ends where the kernel waits for
/// any load of it. The first load therefore makes a trip, and so does the first load after each such wait.
///
/// - Vector-memory loads are `buffer_load`, `global_load`, `flat_load` and `scratch_load`. Loads of scalars
///   (`s_load`) and of workgroup memory (`ds_read`) are none.
/// - A wait is an `s_waitcnt` with `vmcnt`, for any number of outstanding loads: the compiler writes no wait
///   without effect.
/// - A loop's body counts once, and so do both sides of a branch.
pub(crate) fn trips(assembly: &str) -> u32 {
    let (mut trips, mut in_run) = (0, false);
    for line in assembly.lines() {
        // The encoding follows the semicolon.
        let line = line.split(';').next().unwrap_or_default();
        let name = line.split_whitespace().next().unwrap_or_default();
        if is_vector_load(name) {
            trips += u32::from(!in_run);
            in_run = true;
        } else if name == "s_waitcnt" && line.contains("vmcnt(") {
            in_run = false;
        }
    }
    trips
}

fn is_vector_load(name: &str) -> bool {
    ["buffer_load", "global_load", "flat_load", "scratch_load"].iter().any(|load| name.starts_with(load))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: &str = "\tbuffer_load_dwordx4 v[4:7], v2, s[12:15], 0 offen           ; e0381000 80030402";
    const WAIT: &str = "\ts_waitcnt vmcnt(0)                                          ; bf8c3f70";
    const STORE: &str = "\tbuffer_store_dwordx4 v[24:27], v3, s[24:27], 0 offen        ; e0781000 80061803";

    fn of(lines: &[&str]) -> u32 {
        trips(&lines.join("\n"))
    }

    #[test]
    fn loads_side_by_side_are_one_trip() {
        assert_eq!(of(&[]), 0);
        assert_eq!(of(&["BB0:", "\ts_endpgm ; bf810000"]), 0);
        assert_eq!(of(&[LOAD, LOAD, LOAD, WAIT]), 1);
        assert_eq!(of(&[LOAD, "\tv_mul_f32_e32 v8, s20, v8", LOAD, WAIT, STORE]), 1);
    }

    #[test]
    fn a_load_behind_a_wait_is_another_trip() {
        assert_eq!(of(&[LOAD, WAIT, LOAD, WAIT]), 2);
        assert_eq!(of(&[LOAD, LOAD, WAIT, STORE, LOAD, LOAD, WAIT, STORE, LOAD, WAIT]), 3);
        // Two waits for one run.
        assert_eq!(of(&[LOAD, LOAD, "\ts_waitcnt vmcnt(1)", WAIT, LOAD, WAIT]), 2);
        // A wait for the first of two loads, and for scalars with it.
        assert_eq!(of(&[LOAD, LOAD, "\ts_waitcnt vmcnt(1) lgkmcnt(0)", LOAD, WAIT]), 2);
    }

    #[test]
    fn scalars_workgroup_memory_and_stores_are_no_trips() {
        let scalar = "\ts_buffer_load_dwordx4 s[4:7], s[16:19], 0x10                ; f4280108 fa000010";
        let scalars = "\ts_waitcnt lgkmcnt(0)                                        ; bf8cc07f";
        let stores = "\ts_waitcnt_vscnt null, 0x0                                   ; bbfd0000";
        assert_eq!(of(&[scalar, scalars, "\tds_read_b32 v0, v1", scalars]), 0);
        assert_eq!(of(&[LOAD, scalar, scalars, LOAD, STORE, stores, LOAD, WAIT]), 1);
    }

    #[test]
    fn all_families_and_kinds_of_loads_count() {
        for load in [
            "buffer_load_ushort v1, v2, s[0:3], 0 offen",
            "buffer_load_b128 v[4:7], v1, s[4:7], 0 offen",
            "global_load_dwordx2 v[0:1], v[2:3], off",
            "flat_load_dword v0, v[2:3]",
            "scratch_load_b32 v0, off, s0",
        ] {
            assert_eq!(of(&[LOAD, WAIT, load, WAIT]), 2, "{load}");
        }
    }
}
