// Blocks of numbers of 8 bits: a sign and 4 + 3 bits, or 4 + 4 bits where nothing is negative, as the scale's
// sign bit says.

const ONE_Q8 = 0x800000u;

struct Quotient {
    // The position among codes, with the digits that a code does not have.
    position: vec4<u32>,
    // How many they are.
    lost: vec4<u32>,
}

// Bits of a code behind its exponent.
fn fraction_q8(scale: u32) -> u32 {
    return 3u + (scale >> 31u);
}

fn decode_q8(raw: u32, scale: u32) -> vec4<f32> {
    let exponent = (scale >> 23u) & 0xffu;
    let fraction = fraction_q8(scale);
    let code = (vec4<u32>(raw) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(0xffu);
    let magnitude = code & vec4<u32>(0x7fu | ((scale >> 24u) & 0x80u));
    let normal = (magnitude << vec4<u32>(23u - fraction)) + vec4<u32>(112u << 23u);
    let small = bitcast<vec4<u32>>(vec4<f32>(magnitude) * bitcast<f32>((113u - fraction) << 23u));
    let value = bitcast<vec4<f32>>(select(normal, small, (magnitude >> vec4<u32>(fraction)) == vec4<u32>(0u)));
    // With an exponent of 0, so that it is a normal number.
    let product = bitcast<vec4<u32>>(value * bitcast<f32>((scale & 0x7fffffu) | 0x3f800000u));
    let stands = (magnitude > vec4<u32>(0u)) & ((product >> vec4<u32>(23u)) + exponent > vec4<u32>(127u));
    let number = ((code ^ magnitude) << vec4<u32>(24u)) | (product + vec4<u32>((exponent << 23u) - (127u << 23u)));
    return bitcast<vec4<f32>>(select(select(vec4<u32>(0u), number, stands), vec4<u32>(0x7fc00000u), exponent == 0xffu));
}

// The largest magnitude of a vector, and in the sign bit whether anything is negative.
fn peak(bits: vec4<u32>) -> u32 {
    let x = bits & vec4<u32>(0x7fffffffu);
    let most = max(max(x.x, x.y), max(x.z, x.w));
    return most | select(0u, 0x80000000u, any(bits > vec4<u32>(0x80000000u)));
}

fn joined_peaks(a: u32, b: u32) -> u32 {
    return max(a & 0x7fffffffu, b & 0x7fffffffu) | ((a | b) & 0x80000000u);
}

// A block's scale: of 16 bits, so that products are exact.
fn scale_q8(peak: u32) -> u32 {
    let most = peak & 0x7fffffffu;
    let rounded = min((most + 0x80u) & 0xffffff00u, 0x7f7fff00u) | (~peak & 0x80000000u);
    return select(select(rounded, 0u, most < ONE_Q8), 0x7fc00000u, most >= 0x7f800000u);
}

// `part` is added to the quotient, in units of 2⁻¹⁶.
fn quotient_q8(magnitude: vec4<u32>, scale: u32, part: vec4<u32>) -> Quotient {
    let mantissa = (magnitude & vec4<u32>(0x7fffffu)) | vec4<u32>(ONE_Q8);
    let divisor = ((scale & 0x7fffffu) | ONE_Q8) >> 8u;
    // Off by one at most, and the part may make one more, which the rest shows: an integer division takes
    // longer.
    let near = vec4<u32>(vec4<f32>(mantissa) * (64.0 / f32(divisor)));
    let rest = vec4<i32>((mantissa << vec4<u32>(6u)) + ((part * divisor) >> vec4<u32>(16u)) - near * divisor);
    let one = vec4<u32>(1u);
    let zero = vec4<u32>(0u);
    let more = select(zero, one, rest >= vec4<i32>(i32(divisor))) + select(zero, one, rest >= vec4<i32>(2 * i32(divisor)));
    let quotient = near + more - select(zero, one, rest < vec4<i32>(0));
    let below = quotient < vec4<u32>(1u << 14u);
    let digits = select(quotient, quotient << vec4<u32>(1u), below);
    let power = vec4<i32>((magnitude >> vec4<u32>(23u)) + 15u - ((scale >> 23u) & 0xffu)) - select(vec4<i32>(0), vec4<i32>(1), below);
    // What is left of the exponent's last bit is linear, and loses a digit more for every power; beyond 16 of
    // them digits are cut off.
    let normal = digits + (vec4<u32>(power - vec4<i32>(1)) << vec4<u32>(14u));
    let powers = vec4<u32>(max(vec4<i32>(1) - power, vec4<i32>(0)));
    let kept = min(powers, vec4<u32>(16u));
    let small = digits >> min(powers - kept, vec4<u32>(31u));
    return Quotient(select(small, normal, powers == zero), vec4<u32>(14u - fraction_q8(scale)) + kept);
}

fn codes_q8(bits: vec4<u32>, scale: u32, q: Quotient, addend: vec4<u32>) -> u32 {
    let zero = vec4<u32>(0u);
    let code = min((q.position + addend) >> q.lost, vec4<u32>(15u << fraction_q8(scale)));
    let signed = code | select((bits >> vec4<u32>(24u)) & vec4<u32>(0x80u), zero, code == zero);
    // What is not zero stays so.
    let all = select(signed, max(code, vec4<u32>(1u)), (scale >> 31u) == 1u);
    let exponent = (scale >> 23u) & 0xffu;
    let none = ((bits & vec4<u32>(0x7fffffffu)) < vec4<u32>(ONE_Q8)) | vec4<bool>(exponent == 0u || exponent == 0xffu);
    let shifted = select(all, zero, none) << vec4<u32>(0u, 8u, 16u, 24u);
    return shifted.x | shifted.y | shifted.z | shifted.w;
}

fn encode_q8(x: vec4<f32>, scale: u32) -> u32 {
    let bits = bitcast<vec4<u32>>(x);
    let q = quotient_q8(bits & vec4<u32>(0x7fffffffu), scale, vec4<u32>(0u));
    return codes_q8(bits, scale, q, vec4<u32>(1u) << (q.lost - vec4<u32>(1u)));
}

fn encode_q8_stochastic(x: vec4<f32>, scale: u32, random: vec4<u32>) -> u32 {
    let bits = bitcast<vec4<u32>>(x);
    // If the quotient always were rounded down, a slow running mean would sink by that in every step.
    let q = quotient_q8(bits & vec4<u32>(0x7fffffffu), scale, random >> vec4<u32>(16u));
    return codes_q8(bits, scale, q, random & ((vec4<u32>(1u) << q.lost) - vec4<u32>(1u)));
}
