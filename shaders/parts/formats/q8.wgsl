// Blocks of 8-bit numbers: a sign and 4 + 3 bits, or 4 + 4 bits in a block without negative numbers, which
// the scale's sign bit marks.
//
// Codes and numbers meet on a ladder of floats, on which the rungs of all codes have equally spaced bits.
// Numbers count in 2⁻¹⁵ of the scale, so the least number with its own exponent is 2. Below it codes are
// linear. A number r lies at r + max(r, 2): at twice the number, or 2 above it. A rung l is the number min(l
// / 2, l − 2). Code 0 is the rung 2.0. The bits of a rung, without the bits after the code's fraction, end
// with the code.
//
// Results must have the same bits everywhere. A float operation is therefore exact, or a guess that the next
// lines correct.

const ONE_Q8 = 0x800000u;
const BYTES_Q8 = vec4<u32>(0u, 8u, 16u, 24u);

// All bits set for a block without negative numbers, and none otherwise.
fn unsigned_q8(scale: u32) -> u32 {
    return bitcast<u32>(bitcast<i32>(scale) >> 31u);
}

// Bits of a rung after its code's fraction.
fn rest_q8(scale: u32) -> u32 {
    return 20u + unsigned_q8(scale);
}

fn decode_q8(raw: u32, scale: u32) -> vec4<f32> {
    let exponent = scale & 0x7f800000u;
    let lost = exponent == 0x7f800000u;
    let magnitudes = raw & (unsigned_q8(scale) | 0x7f7f7f7fu);
    let code = (vec4<u32>(magnitudes) >> BYTES_Q8) & vec4<u32>(0xffu);
    let rung = bitcast<vec4<f32>>((code << vec4<u32>(rest_q8(scale))) | vec4<u32>(0x40000000u));
    // The product uses the scale's digits, so it is a normal number. If it is not normal with the scale's
    // exponent, the result is zero.
    let unit = bitcast<f32>((scale & 0x7fffffu) | 0x38000000u);
    let product = bitcast<vec4<i32>>(min(rung * (0.5 * unit), rung * unit - 2.0 * unit));
    let sign = ((vec4<u32>(raw ^ magnitudes) >> BYTES_Q8) & vec4<u32>(0xffu)) << vec4<u32>(24u);
    let number = bitcast<vec4<u32>>(product) + vec4<u32>(exponent - 0x3f800000u) + sign;
    let least = select(max(0x40000000i - bitcast<i32>(exponent), 1i), 0x7fffffffi, lost);
    let none = select(0u, 0x7fc00000u, lost);
    return bitcast<vec4<f32>>(select(number, vec4<u32>(none), product < vec4<i32>(least)));
}

// The largest magnitude of a vector, shifted by one bit; the free bit is set if a number is negative.
fn peak(bits: vec4<u32>) -> u32 {
    // As unsigned integers, the largest bits are the most negative number's, if there is one. As signed
    // integers, the largest bits are the most positive number's.
    let most = max(max(bits.x, bits.y), max(bits.z, bits.w));
    let i = bitcast<vec4<i32>>(bits);
    let other = bitcast<u32>(max(max(i.x, i.y), max(i.z, i.w)));
    return max(most << 1u, other << 1u) + select(0u, 1u, most > 0x80000000u);
}

// A block's scale. It has 16 bits, so that products are exact.
fn scale_q8(peak: u32) -> u32 {
    let most = peak >> 1u;
    let rounded = min((most + 0x80u) & 0xffffff00u, 0x7f7fff00u) | ((peak ^ 1u) << 31u);
    return select(select(rounded, 0u, most < ONE_Q8), 0x7fc00000u, most >= 0x7f800000u);
}

// Whether a block has an infinity or NaN: then all its codes are 0.
fn is_lost_q8(scale: u32) -> bool {
    return (scale & 0x7f800000u) == 0x7f800000u;
}

fn encode_q8(x: vec4<f32>, scale: u32) -> u32 {
    let rest = vec4<u32>(rest_q8(scale));
    // Numbers and a unit without the scale's exponent.
    let power = ~scale & 0x7f800000u;
    let number = abs(x) * bitcast<f32>(power);
    let unit = bitcast<f32>((scale & 0x7fffffu) | 0x38800000u);
    let above = max(number, vec4<f32>(2.0 * unit));
    // The approximate places of the numbers. In a block without negative numbers, a number other than zero
    // has at least code 1.
    let lowest = bitcast<f32>(0x40000000u | (unsigned_q8(scale) & 0x80000u));
    let place = max((number + above) * (1.0 / unit), vec4<f32>(lowest));
    // The code below, unless the guess is off by one, close to a code. The middle between it and the next
    // code decides in both cases. The comparison is in integers: a compiler could turn a difference of floats
    // into a sum on the other side, which is rounded.
    let rung = bitcast<vec4<u32>>(place) >> rest;
    let middle = bitcast<vec4<f32>>((rung << rest) | vec4<u32>(1u << (rest.x - 1u)));
    let tie = bitcast<vec4<i32>>(middle * unit - above);
    let code = rung + select(vec4<u32>(0u), vec4<u32>(1u), bitcast<vec4<i32>>(number) >= tie);
    let signed = code + ((bitcast<vec4<u32>>(x) >> vec4<u32>(31u)) << vec4<u32>(7u));
    // Numbers below the least normal number become zero without a sign. In a block with negative numbers, so
    // do numbers below half of the least code.
    let least = max(bitcast<f32>(scale) * 0x1p-18f, 0x1p-126f);
    let byte = select(signed, vec4<u32>(0u), abs(x) < vec4<f32>(least));
    let word = (byte.x & 0xffu) | ((byte.y & 0xffu) << 8u) | ((byte.z & 0xffu) << 16u) | (byte.w << 24u);
    return select(word, 0u, power == 0u);
}

fn encode_q8_stochastic(x: vec4<f32>, scale: u32, random: vec4<u32>) -> u32 {
    let one = vec4<u32>(1u);
    let zero = vec4<u32>(0u);
    let unsigned = unsigned_q8(scale);
    let fraction = 3u - unsigned;
    let bits = bitcast<vec4<u32>>(x);
    // The quotient of the mantissas, of 14 or 15 bits. If it were always rounded down, a slow running mean
    // would sink in every step. The upper half of the random bits is therefore added after its last digit.
    let divisor = ((scale & 0x7fffffu) | ONE_Q8) >> 8u;
    let mantissa = ((bits << vec4<u32>(6u)) & vec4<u32>(0x1fffffc0u)) | vec4<u32>(0x20000000u);
    let dividend = mantissa + (((random >> vec4<u32>(16u)) * divisor) >> vec4<u32>(16u));
    // A guess, the quotient or one less: the last digits of a float above 2²³. An integer division takes
    // longer.
    let inverse = (1.0 - 0x1p-19f) / f32(divisor);
    let near = bitcast<vec4<u32>>(vec4<f32>(dividend) * inverse + 8388607.5) & vec4<u32>(0xffffu);
    let quotient = near + select(zero, one, dividend - near * divisor >= vec4<u32>(divisor));
    // The digits from one place on, and the power of two of the number above the least code with an exponent.
    let short = quotient < vec4<u32>(1u << 14u);
    let digits = quotient << select(vec4<u32>(16u), vec4<u32>(17u), short);
    let exponent = (scale >> 23u) & 0xffu;
    let own = (bits >> vec4<u32>(23u)) & vec4<u32>(0xffu);
    let power = bitcast<vec4<i32>>(own + (14u - exponent) - select(zero, one, short));
    // The digits as a number with a fixed point after the code's last bit. For linear codes, each power moves
    // the digits by one place, and rounding takes one more random bit, up to 16 more.
    let point = 30u - fraction;
    let place = digits >> bitcast<vec4<u32>>(clamp(-power, vec4<i32>(0), vec4<i32>(31)));
    let draw = random << bitcast<vec4<u32>>(clamp(power + 16, vec4<i32>(0), vec4<i32>(16)));
    let part = (place + (draw & vec4<u32>((1u << point) - 1u))) >> vec4<u32>(point);
    let code = part + (bitcast<vec4<u32>>(max(power, vec4<i32>(0))) << vec4<u32>(fraction));
    // In a block without negative numbers, a number other than zero does not become zero.
    let inside = clamp(code, vec4<u32>(unsigned & 1u), vec4<u32>(15u << fraction));
    // Below the least normal number, or without digits left in a block with negative numbers.
    let least = max(bitcast<f32>(scale) * 0x1p-45f, 0x1p-126f);
    let byte = select(inside, zero, abs(x) < vec4<f32>(least)) << BYTES_Q8;
    let codes = byte.x | byte.y | byte.z | byte.w;
    // Zero has no sign. Codes with signs have seven bits, so nothing is carried from byte to byte.
    let top = (bits >> vec4<u32>(24u, 16u, 8u, 0u)) & vec4<u32>(0x80u, 0x8000u, 0x800000u, 0x80000000u);
    let signs = (top.x | top.y | top.z | top.w) & ~unsigned & (codes + 0x7f7f7f7fu);
    return select(codes | signs, 0u, is_lost_q8(scale));
}
