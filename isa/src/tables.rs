//! Tables of the statistics, for a terminal and for the document.

use crate::families::{FAMILIES, Family};
use crate::measured::Measured;

/// The text before the tables in `docs/isa.md`.
const INTRODUCTION: &str = "\
# AMD instructions of the kernels

Mesa's driver RADV compiles for GPUs that a machine does not have. `cargo xtask isa` compiles every kernel
with it and prints the compiler's statistics; `cargo xtask isa --write` writes this file. The numbers are the
same on every machine. `cargo xtask isa --check` checks them against `shaders/bounds.txt` and this file.
`cargo xtask isa --assembly FAMILY RULE VARIANT` prints the instructions of one kernel.

- *Trips* are the trips to memory that a thread makes one after another: runs of vector-memory loads. A run
  begins after a wait for loads of the previous run.
- *Latency* is the compiler's estimate of a wave's cycles from start to end. *Inverse throughput* is its
  estimate of the cycles that the busiest unit of a SIMD takes for 64 threads. It counts the body of a loop
  eight times.
- *Waves* is the number of waves that a SIMD holds at once. *Spills* are registers that are kept in memory.
- *Arithmetic* is the inverse throughput divided by the SIMDs of a compute unit. *Memory* is the number of
  cycles in which the card moves the bytes that 64 threads read and write, per compute unit. If threads loop
  over a segment, each counts eight vectors. *Share* is arithmetic divided by memory. Below 1, memory decides
  the time of a kernel. Below 0.5 it does so on cards with twice the bandwidth too.
";

/// The document.
pub(crate) fn document(mesa: &str, all: &[Measured]) -> String {
    format!("{INTRODUCTION}\n{}\n\n{}", version_line(mesa), tables(all))
}

/// The line of the document that names the compiler.
pub(crate) fn version_line(mesa: &str) -> String {
    format!("Compiled by {mesa}.")
}

/// A table for each family.
pub(crate) fn tables(all: &[Measured]) -> String {
    let of = |family: &Family| {
        let kernels: Vec<_> = all.iter().filter(|kernel| kernel.family == family.name).collect();
        format!("## {}\n\n{}\n\n{}", family.name, memory(family), table(&kernels))
    };
    FAMILIES.iter().map(of).collect::<Vec<_>>().join("\n")
}

fn memory(family: &Family) -> String {
    let Family { architecture, card, simds, .. } = family;
    let bytes = family.bytes_per_cycle();
    format!(
        "{architecture}, with the memory of an {card}: {bytes:.1} bytes per cycle and unit of {simds} SIMDs."
    )
}

const COLUMNS: [&str; 12] = [
    "kernel",
    "rule",
    "trips",
    "latency",
    "inverse throughput",
    "VGPRs",
    "waves",
    "spills",
    "instructions",
    "arithmetic",
    "memory",
    "share",
];

fn table(kernels: &[&Measured]) -> String {
    let mut rows = vec![COLUMNS.map(str::to_owned), COLUMNS.map(|_| "---".to_owned())];
    rows.extend(kernels.iter().map(|kernel| {
        let memory = |text: String| if kernel.memory_cycles > 0.0 { text } else { String::new() };
        let spills = match kernel.scratch {
            0 => kernel.spills.to_string(),
            bytes => format!("{} ({bytes} bytes)", kernel.spills),
        };
        [
            kernel.variant.clone(),
            kernel.rule.clone(),
            kernel.trips.to_string(),
            kernel.latency.to_string(),
            kernel.inverse_throughput.to_string(),
            kernel.vgprs.to_string(),
            kernel.waves.to_string(),
            spills,
            kernel.instructions.to_string(),
            format!("{:.0}", kernel.arithmetic_cycles),
            memory(format!("{:.0}", kernel.memory_cycles)),
            memory(format!("{:.2}", kernel.share().unwrap_or_default())),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; COLUMNS.len()] = std::array::from_fn(width);
    let row = |row: &[String; COLUMNS.len()]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!(" {cell:width$} |"));
        format!("|{}\n", cells.collect::<String>())
    };
    rows.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_row_a_kernel() {
        let kernel = Measured {
            family: "navi21".into(),
            rule: "sgd".into(),
            variant: "one group".into(),
            trips: 1,
            latency: 786,
            inverse_throughput: 95,
            vgprs: 24,
            waves: 32,
            spills: 2,
            scratch: 64,
            instructions: 92,
            arithmetic_cycles: 47.5,
            memory_cycles: 1_080.0,
        };
        let control =
            Measured { variant: "control".into(), memory_cycles: 0.0, scratch: 0, ..kernel.clone() };
        let text = table(&[&kernel, &control]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{text}");
        let cells: Vec<_> = lines[2].split('|').map(str::trim).collect();
        assert_eq!(
            cells,
            [
                "",
                "one group",
                "sgd",
                "1",
                "786",
                "95",
                "24",
                "32",
                "2 (64 bytes)",
                "92",
                "48",
                "1080",
                "0.04",
                ""
            ]
        );
        assert!(lines[3].ends_with("|        |       |"), "{text}");
    }
}
