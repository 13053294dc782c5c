// One lane, in plain C++: the vector of portable kernels, and of single numbers elsewhere. cast_rows.h says what its
// functions do.
#ifndef KVLINGUA_CAST_SCALAR_H_
#define KVLINGUA_CAST_SCALAR_H_

#include <cstdint>
#include <cstring>

#include "anywhere.h"

namespace {

struct Scalar {
    using U = uint32_t;
    static constexpr int64_t kLanes = 1, kGroup = 64;
    static constexpr bool kBounds = false;
    KVL_ANYWHERE static U all(uint32_t x) { return x; }
    static U each(const float* p) { return bits(*p); }
    KVL_ANYWHERE static U bit_and(U a, U b) { return a & b; }
    KVL_ANYWHERE static U bit_or(U a, U b) { return a | b; }
    KVL_ANYWHERE static U add(U a, U b) { return a + b; }
    KVL_ANYWHERE static U sub(U a, U b) { return a - b; }
    KVL_ANYWHERE static U min(U a, U b) { return a < b ? a : b; }
    KVL_ANYWHERE static U max(U a, U b) { return a > b ? a : b; }
    template <int n>
    KVL_ANYWHERE static U right(U a) {
        return a >> n;
    }
    KVL_ANYWHERE static U if_greater(U a, U b, U yes, U no) { return a > b ? yes : no; }
    KVL_ANYWHERE static U if_equal(U a, U b, U yes, U no) { return a == b ? yes : no; }
    KVL_ANYWHERE static U if_nan(U x, U yes, U no) { return (x & 0x7fffffff) > 0x7f800000 ? yes : no; }
    KVL_ANYWHERE static U add_f(U a, U b) { return bits(number(a) + number(b)); }
    KVL_ANYWHERE static U sub_f(U a, U b) { return bits(number(a) - number(b)); }
    KVL_ANYWHERE static U mul_f(U a, U b) { return bits(number(a) * number(b)); }

    template <typename T>
    static void load(const char* p, U* x) {
        T codes[kGroup];
        std::memcpy(codes, p, sizeof(codes));
        for (int i = 0; i < kGroup; ++i) x[i] = static_cast<U>(codes[i]) << (32 - 8 * sizeof(T));
    }
    template <typename T>
    static void store(char* p, const U* codes, bool) {
        T out[kGroup];
        for (int i = 0; i < kGroup; ++i) out[i] = static_cast<T>(codes[i]);
        std::memcpy(p, out, sizeof(out));
    }
    // The code of a packed format, from its units and the number that they came from.
    template <class F>
    KVL_ANYWHERE static U finish(U units, U x) {
        const U code = if_nan(x, F::kNanCode, min(units - F::kFirst, F::kLargest));
        return code | (code == F::kUnsigned ? 0 : x >> 24 & 0x80);
    }
    template <class F, bool kBounded>
    static void store_small(char* p, const U* units, const U* x, bool) {
        uint8_t out[kGroup];
        for (int i = 0; i < kGroup; ++i) out[i] = static_cast<uint8_t>(finish<F>(units[i], x[i]));
        std::memcpy(p, out, sizeof(out));
    }

    template <typename T>
    static U most(U a, U b) {
        T x[4 / sizeof(T)], y[4 / sizeof(T)];
        std::memcpy(x, &a, sizeof(a));
        std::memcpy(y, &b, sizeof(b));
        for (size_t i = 0; i < 4 / sizeof(T); ++i) x[i] = x[i] > y[i] ? x[i] : y[i];
        std::memcpy(&a, x, sizeof(a));
        return a;
    }
    template <typename T>
    static uint32_t greatest(U a) {
        T x[4 / sizeof(T)], y = 0;
        std::memcpy(x, &a, sizeof(a));
        for (const T next : x) y = next > y ? next : y;
        return y;
    }

    template <typename T>
    static constexpr int64_t kTogether = 1;
    template <typename T>
    static void greatest_of_each(const U* a, uint32_t* out) {
        *out = greatest<T>(*a);
    }

  private:
    KVL_ANYWHERE static float number(U u) {
        float f;
        __builtin_memcpy(&f, &u, sizeof(f));
        return f;
    }
    KVL_ANYWHERE static U bits(float f) {
        U u;
        __builtin_memcpy(&u, &f, sizeof(u));
        return u;
    }
};

}  // namespace

#endif  // KVLINGUA_CAST_SCALAR_H_
