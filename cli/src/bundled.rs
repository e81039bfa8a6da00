//! The recorded runs that come with the program; `trajectories/README.md` says where they are from.

/// A recording, in the parts that it is stored in.
#[derive(Clone, Copy, Debug)]
pub struct Recording {
    /// Its name.
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

/// All of them.
pub const RECORDINGS: [Recording; 3] = [
    recording!("digits-adam"),
    recording!("digits-adamw-clip-warmup-cosine"),
    recording!("digits-sgd-momentum-step-decay"),
];
