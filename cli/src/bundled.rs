//! The recorded runs that come with the program; `trajectories/README.md` says where they are from.

/// Name and bytes of each file.
pub const FILES: [(&str, &[u8]); 3] = [
    ("digits-adam", include_bytes!("../trajectories/digits-adam.safetensors")),
    (
        "digits-adamw-clip-warmup-cosine",
        include_bytes!("../trajectories/digits-adamw-clip-warmup-cosine.safetensors"),
    ),
    (
        "digits-sgd-momentum-step-decay",
        include_bytes!("../trajectories/digits-sgd-momentum-step-decay.safetensors"),
    ),
];
