// Numbers beyond the range of an f32: norms, scales and their products. Subnormal numbers count too, since
// devices may flush them to zero.

// x · 2^e, x in [1, 2).
struct Wide {
    x: f32,
    e: i32,
}

const ONE = Wide(1.0, 0);
// The exponent of zero: no product or ratio brings it into the range of an f32.
const NOTHING = Wide(1.0, -4096);

// x · 2^shift, of a normal number above 0, or 0.
fn wide(x: f32, shift: i32) -> Wide {
    let bits = bitcast<u32>(x);
    if bits < NORMAL {
        return NOTHING;
    }
    return Wide(bitcast<f32>((bits & 0x7fffffu) | 0x3f800000u), i32(bits >> 23u) - 127 + shift);
}

fn product(a: Wide, b: Wide) -> Wide {
    return wide(a.x * b.x, a.e + b.e);
}

fn ratio(a: Wide, b: Wide) -> Wide {
    // A product with a power of two is exact; a division may not be.
    return wide(select(a.x / b.x, a.x, b.x == 1.0), a.e - b.e);
}

// The nearest f32 towards zero, or infinity.
fn narrow(w: Wide) -> f32 {
    let digits = bitcast<u32>(w.x) & 0x7fffffu;
    if w.e > 127 {
        return not_finite(1u);
    }
    if w.e < -126 {
        return bitcast<f32>((digits | NORMAL) >> u32(min(-126 - w.e, 24)));
    }
    return bitcast<f32>((u32(w.e + 127) << 23u) | digits);
}

// A factor of gradients for the step's kernels. A factor beyond the normal numbers is sent as a normal number
// with a negative sign; `split_factor` restores it.
fn sent(factor: Wide) -> f32 {
    if factor.e < -126 {
        return -narrow(Wide(factor.x, factor.e + 100));
    }
    if factor.e > 127 {
        return -narrow(Wide(factor.x, factor.e - 100));
    }
    return narrow(factor);
}
