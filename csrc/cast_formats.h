// Number formats: from codes to fp32 and back, as formulas over a vector V of lanes (cast_rows.h names its operations).
//
// They take integer operations and single additions, subtractions and multiplications of fp32 only, so that all
// instruction sets give the same bits. No product is added to anything, so that no compiler can fuse the two.
//
// To be included inside a KVL_TARGET region where there is one, like all that follows from it: everything is in an
// anonymous namespace, so that no function compiled for one instruction set can be taken by the linker for another
// file's.
#ifndef KVLINGUA_CAST_FORMATS_H_
#define KVLINGUA_CAST_FORMATS_H_

#include <cstdint>

#include "anywhere.h"

namespace {

constexpr uint32_t kSign = 0x80000000, kAbs = 0x7fffffff, kInfinity = 0x7f800000, kNan = 0x7fc00000;

// A format has:
//   T                   its code as an unsigned integer
//   kMagnitude          the bits of a code but its sign; those of finite numbers are at most kLargest
//   decode(code)        to fp32, exactly. A code lies in the upper bits of its lane, as a number's sign does there.
//   encode(x)           to a code in the lane's lower bits: to nearest, ties to even; every NaN becomes the same one
// or instead of encode, where kPacked says so, a first step whose result is finished while it is packed
// (V::store_small).
struct F32 {
    using T = uint32_t;
    static constexpr uint32_t kMagnitude = kAbs, kLargest = kInfinity - 1;
    static constexpr bool kPacked = false, kNanIsSign = false;
    template <class V>
    KVL_ANYWHERE static typename V::U decode(typename V::U code) {
        return code;
    }
    template <class V>
    KVL_ANYWHERE static typename V::U encode(typename V::U x) {
        return V::if_nan(x, V::all(kNan), x);
    }
};

struct Bf16 {
    using T = uint16_t;
    static constexpr uint32_t kMagnitude = 0x7fff, kLargest = 0x7f7f;
    static constexpr bool kPacked = false, kNanIsSign = false;
    template <class V>
    KVL_ANYWHERE static typename V::U decode(typename V::U code) {
        return code;
    }
    template <class V>
    KVL_ANYWHERE static typename V::U encode(typename V::U x) {
        const auto odd = V::bit_and(V::template right<16>(x), V::all(1));
        const auto code = V::template right<16>(V::add(V::add(x, V::all(0x7fff)), odd));
        return V::if_nan(x, V::all(kNan >> 16), code);
    }
};

// A format of 1 + kExponent + kMantissa bits, with the exponent's bias.
template <class Code, int kExponentBits, int kMantissaBits, int kBias>
struct Small {
    using T = Code;
    static constexpr int kShift = 23 - kMantissaBits;  // of a magnitude, to the place of an fp32's
    static constexpr int kDown = 8 - kExponentBits;    // of a magnitude in the lane's upper bits, to there
    static constexpr int kUpper = 31 - kExponentBits - kMantissaBits;  // of a code, to the lane's upper bits
    static constexpr uint32_t kMagnitude = (1u << (kExponentBits + kMantissaBits)) - 1;
    static constexpr uint32_t kExponent = kMagnitude >> kMantissaBits << kMantissaBits;
    static constexpr uint32_t kLeast = static_cast<uint32_t>(128 - kBias) << 23;  // fp32 of the smallest normal number

    // The fp32 of a finite number's magnitude.
    template <class V>
    KVL_ANYWHERE static typename V::U decode_magnitude(typename V::U code) {
        const auto magnitude = V::template right<kDown>(V::bit_and(code, V::all(kAbs)));
        // As if all had the leading one that subnormal numbers lack: for them twice the number is least + the right
        // one, for normal ones it is at least least + themselves.
        const auto x = V::add(magnitude, V::all(kLeast - (1u << 23)));
        return V::min(x, V::sub_f(V::add(x, V::all(1u << 23)), V::all(kLeast)));
    }

    // How many units in the last place |x| comes to, counted through all exponents as codes do; not capped at the
    // largest, which comes out for 2^20 times as much as well. More than 2^21 for NaN.
    template <class V>
    KVL_ANYWHERE static typename V::U units(typename V::U x) {
        const auto magnitude = V::bit_and(x, V::all(kAbs));
        // A power of two so large that adding it rounds to the last place; subnormal numbers share the least's.
        const auto exponent = V::bit_and(V::max(magnitude, V::all(kLeast)), V::all(kInfinity));
        const auto power = V::mul_f(exponent, V::all(static_cast<uint32_t>(127 + kShift) << 23));
        const auto mantissa = V::sub(V::add_f(magnitude, power), power);  // with its leading one
        return V::add(mantissa, V::template right<kShift>(power));
    }
    static constexpr uint32_t kFirst = static_cast<uint32_t>(128 + kShift - kBias) << kMantissaBits;  // units of zero
};

// IEEE's own: the largest exponent is infinity and NaN.
struct F16 : Small<uint16_t, 5, 10, 15> {
    static constexpr uint32_t kLargest = kExponent - 1;
    static constexpr bool kPacked = false, kNanIsSign = false;
    template <class V>
    KVL_ANYWHERE static typename V::U decode(typename V::U code) {
        const auto x = decode_magnitude<V>(code);
        const auto special = V::add(x, V::all(kInfinity - (kExponent << kShift) - (kLeast - (1u << 23))));
        const auto past = V::all((kLargest << kUpper) | 0xffff);
        return V::bit_or(V::if_greater(V::bit_and(code, V::all(kAbs)), past, special, x),
                         V::bit_and(code, V::all(kSign)));
    }
    template <class V>
    KVL_ANYWHERE static typename V::U encode(typename V::U x) {
        const auto code = V::min(V::sub(units<V>(x), V::all(kFirst)), V::all(kExponent));
        const auto sign = V::bit_and(V::template right<16>(x), V::all(kSign >> 16));
        return V::if_nan(x, V::all(0x7e00), V::bit_or(code, sign));
    }
};

struct E5m2 : Small<uint8_t, 5, 2, 15> {
    static constexpr uint32_t kLargest = kExponent - 1, kNanCode = 0x7f, kUnsigned = kNanCode;
    static constexpr bool kPacked = true, kNanIsSign = false;
    template <class V>
    KVL_ANYWHERE static typename V::U decode(typename V::U code) {
        return F16::decode<V>(code);  // its upper byte
    }
};

// The two whose finite numbers go on where infinity would be.
struct E4m3fn : Small<uint8_t, 4, 3, 7> {
    static constexpr uint32_t kLargest = kMagnitude - 1, kNanCode = kMagnitude, kUnsigned = kNanCode;
    static constexpr bool kPacked = true, kNanIsSign = false;
    template <class V>
    KVL_ANYWHERE static typename V::U decode(typename V::U code) {
        const auto x = V::if_greater(V::bit_and(code, V::all(kAbs)), V::all((kNanCode << kUpper) - 1), V::all(kNan),
                                     decode_magnitude<V>(code));
        return V::bit_or(x, V::bit_and(code, V::all(kSign)));
    }
};

struct E4m3fnuz : Small<uint8_t, 4, 3, 8> {
    static constexpr uint32_t kLargest = kMagnitude, kNanCode = kMagnitude + 1, kUnsigned = 0;
    static constexpr bool kPacked = true, kNanIsSign = true;
    template <class V>
    KVL_ANYWHERE static typename V::U decode(typename V::U code) {
        const auto x = V::bit_or(decode_magnitude<V>(code), V::bit_and(code, V::all(kSign)));
        return V::if_equal(code, V::all(kSign), V::all(kNan), x);
    }
};

}  // namespace

#endif  // KVLINGUA_CAST_FORMATS_H_
