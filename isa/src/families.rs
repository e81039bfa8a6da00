//! The families of GPUs to compile for, and a card of each.

/// A family of GPUs, with a card for the ratio of arithmetic to memory.
pub(crate) struct Family {
    /// Mesa's name of the family.
    pub(crate) name: &'static str,
    pub(crate) architecture: &'static str,
    pub(crate) card: &'static str,
    /// Bytes per second from and to the card's memory.
    bandwidth: f64,
    compute_units: f64,
    /// Cycles per second.
    clock: f64,
    /// SIMDs of a compute unit.
    pub(crate) simds: f64,
}

/// All listed families.
pub(crate) const FAMILIES: [Family; 3] = [
    Family {
        name: "navi21",
        architecture: "RDNA 2",
        card: "RX 6900 XT",
        bandwidth: 512e9,
        compute_units: 80.0,
        clock: 2.25e9,
        simds: 2.0,
    },
    Family {
        name: "gfx1100",
        architecture: "RDNA 3",
        card: "RX 7900 XTX",
        bandwidth: 960e9,
        compute_units: 96.0,
        clock: 2.5e9,
        simds: 2.0,
    },
    // Mesa compiles for no card of CDNA. GCN 5 has SIMDs of the same kind, and there are four as well.
    Family {
        name: "vega10",
        architecture: "GCN 5",
        card: "MI300X",
        bandwidth: 5.3e12,
        compute_units: 304.0,
        clock: 2.1e9,
        simds: 4.0,
    },
];

/// Elements of a wave of 64 threads, each with a vector of four.
const ELEMENTS_OF_A_WAVE: f64 = 256.0;

impl Family {
    /// Bytes that the card's memory moves in a cycle for each compute unit.
    pub(crate) fn bytes_per_cycle(&self) -> f64 {
        self.bandwidth / (self.compute_units * self.clock)
    }

    /// Cycles in which the card's memory moves the bytes of a wave with `vectors` vectors per thread.
    pub(crate) fn memory_cycles(&self, bytes_per_element: f64, vectors: f64) -> f64 {
        bytes_per_element * vectors * ELEMENTS_OF_A_WAVE / self.bytes_per_cycle()
    }

    /// Cycles in which a compute unit does a wave's arithmetic, if its SIMDs share waves evenly.
    pub(crate) fn arithmetic_cycles(&self, inverse_throughput: u64) -> f64 {
        inverse_throughput as f64 / self.simds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AdamW with 8-bit state, which moves 66 bytes for four elements.
    #[test]
    fn cycles_of_a_wave() {
        let of = |name| FAMILIES.iter().find(|family| family.name == name).unwrap();
        let (rdna, gcn) = (of("navi21"), of("vega10"));
        assert!((rdna.bytes_per_cycle() - 2.84).abs() < 0.01);
        assert!((gcn.bytes_per_cycle() - 8.30).abs() < 0.01);
        assert!((rdna.memory_cycles(16.5, 1.0) - 1_485.0).abs() < 1.0);
        assert!((gcn.memory_cycles(16.5, 1.0) - 509.0).abs() < 1.0);
        assert_eq!(rdna.arithmetic_cycles(1_859), 929.5);
    }
}
