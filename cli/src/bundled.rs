//! The recorded runs of the program; `trajectories/README.md` has their sources.

/// A recording in its stored parts.
#[derive(Clone, Copy, Debug)]
pub struct Recording {
    /// The recording's name.
    pub name: &'static str,
    parts: [&'static [u8]; 4],
}

impl Recording {
    /// The bytes of the file.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.parts.concat()
    }
}

macro_rules! recording {
    ($name:literal) => {
        Recording {
            name: $name,
            parts: [
                include_bytes!(concat!("../trajectories/", $name, ".safetensors.0")),
                include_bytes!(concat!("../trajectories/", $name, ".safetensors.1")),
                include_bytes!(concat!("../trajectories/", $name, ".safetensors.2")),
                include_bytes!(concat!("../trajectories/", $name, ".safetensors.3")),
            ],
        }
    };
}

/// All recordings.
pub const RECORDINGS: [Recording; 3] = [
    recording!("digits-adam"),
    recording!("digits-adamw-clip-warmup-cosine"),
    recording!("digits-sgd-momentum-step-decay"),
];
