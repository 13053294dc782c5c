// Numbers of every type one at a time, by arithmetic in double that is exact: slow and plain, to judge the kernels by.
#ifndef KVLINGUA_TESTS_NUMBERS_H_
#define KVLINGUA_TESTS_NUMBERS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kvlingua.h"

namespace numbers {

// A small floating-point type. Largest: the largest finite number; nan: the one code that results are given.
struct Type {
    int bytes, fraction_bits, exponent_bits, bias;
    double largest;
    bool infinities;
    uint32_t nan;
    bool negative_zero;
};

inline Type type_of(int32_t type) {
    switch (type) {
        case KVL_F32:
            return {4, 23, 8, 127, std::numeric_limits<float>::max(), true, 0x7fc00000, true};
        case KVL_F16:
            return {2, 10, 5, 15, 65504, true, 0x7e00, true};
        case KVL_BF16:
            return {2, 7, 8, 127, 0x1.fep127, true, 0x7fc0, true};
        case KVL_E4M3FN:
            return {1, 3, 4, 7, 448, false, 0x7f, true};
        case KVL_E4M3FNUZ:
            return {1, 3, 4, 8, 240, false, 0x80, false};
        case KVL_E5M2:
            return {1, 2, 5, 15, 57344, true, 0x7f, true};
        default:
            return {1, 0, 0, 0, 0, false, 0, false};  // KVL_BYTE: no number
    }
}

inline uint32_t load(const uint8_t* bytes, int size) {
    uint32_t bits = 0;
    std::memcpy(&bits, bytes, static_cast<size_t>(size));
    return bits;
}

inline float decode(int32_t of, uint32_t bits) {
    const Type t = type_of(of);
    const uint32_t fraction = bits & ((1u << t.fraction_bits) - 1);
    const uint32_t exponent = bits >> t.fraction_bits & ((1u << t.exponent_bits) - 1);
    const uint32_t top = (1u << t.exponent_bits) - 1, ones = (1u << t.fraction_bits) - 1;
    const double sign = bits >> (8 * t.bytes - 1) ? -1.0 : 1.0;
    const float nan = std::numeric_limits<float>::quiet_NaN();
    if (of == KVL_E4M3FNUZ && bits == 0x80) return nan;
    if (of == KVL_E4M3FN && exponent == top && fraction == ones) return nan;
    if (t.infinities && exponent == top)
        return fraction ? nan : static_cast<float>(sign * std::numeric_limits<double>::infinity());
    const double whole = exponent ? fraction + (1u << t.fraction_bits) : fraction;
    return static_cast<float>(sign *
                              std::ldexp(whole, static_cast<int>(exponent ? exponent : 1) - t.bias - t.fraction_bits));
}

// Rounds to nearest even. Types of 8 bits saturate, others overflow to infinity.
inline uint32_t encode(int32_t to, float number) {
    const Type t = type_of(to);
    if (std::isnan(number)) return t.nan;
    const uint32_t sign = std::signbit(number) ? 1u << (8 * t.bytes - 1) : 0;
    double size = std::fabs(static_cast<double>(number));
    int exponent = 1 - t.bias;  // of the smallest normal number
    if (size > 0 && !std::isinf(size)) exponent = std::max(exponent, std::ilogb(size));
    if (!std::isinf(size))
        size = std::ldexp(std::nearbyint(std::ldexp(size, t.fraction_bits - exponent)), exponent - t.fraction_bits);
    if (size > t.largest) {
        if (t.bytes > 1) return sign | ((1u << t.exponent_bits) - 1) << t.fraction_bits;
        size = t.largest;
    }
    if (size == 0) return t.negative_zero ? sign : 0;
    exponent = std::max(1 - t.bias, std::ilogb(size));
    const uint32_t whole = static_cast<uint32_t>(std::ldexp(size, t.fraction_bits - exponent));  // with its leading bit
    const uint32_t biased = static_cast<uint32_t>(exponent + t.bias);
    return sign | (((biased - 1) << t.fraction_bits) + whole);  // subnormal: biased is 1, and whole has no leading bit
}

}  // namespace numbers

#endif  // KVLINGUA_TESTS_NUMBERS_H_
