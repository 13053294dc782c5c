// Loops of casts over rows of numbers, for a type V of vectors; see cast_formats.h for where to include it.
#ifndef KVLINGUA_CAST_ROWS_H_
#define KVLINGUA_CAST_ROWS_H_

#include <cmath>
#include <cstring>

#include "cast_formats.h"
#include "cast_kernels.h"
#include "cast_scalar.h"

namespace {

using kvl::CastRows;

// V has a vector U of kLanes lanes of 32 bits, and operations on it:
//   all(x), each(p)                        every lane x, or the 4 bytes at p
//   bit_and, bit_or, add, sub, min, max    of integers; min and max below 2^31
//   right<n>                               shift
//   if_greater, if_equal(a, b, yes, no)    choice by comparison, below 2^31
//   if_nan(x, yes, no)                     choice where x is NaN as fp32
//   add_f, sub_f, mul_f                    of fp32
//   most<T>(a, b), greatest<T>(a)          lanes of T instead: the larger ones; the largest
//   greatest_of_each<T>(a, out)            the same of each of kTogether<T> vectors
// and for groups of kGroup vectors, with as many numbers as that has lanes, in an order of its own:
//   load<T>(p, x)                          integers T, each to the upper bits of its lane
//   store<T>(p, codes, stream)             and from the lower bits
//   store_small<F>(p, units, x, stream)    from units of F, and the numbers x that they came from
template <class V>
constexpr int64_t kGroupSize = V::kGroup * V::kLanes;

// An address beside the memory at hand: made of integers, since it may lie in another allocation.
inline const char* beside(const char* p, int64_t distance) {
    return reinterpret_cast<const char*>(reinterpret_cast<intptr_t>(p) + distance);
}

// Whether all rows of the target fill lines of 64 bytes.
inline bool whole_lines(const CastRows& rows, int64_t itemsize) {
    int64_t odd = reinterpret_cast<intptr_t>(rows.target) | (rows.size * itemsize);
    for (int i = 0; i < 2; ++i) odd |= rows.count[i] > 1 ? rows.target_step[i] : 0;
    return odd % 64 == 0;
}

template <class V, class Target>
inline void store(char* to, const typename V::U* x, bool stream) {
    typename V::U codes[V::kGroup];
    if constexpr (Target::kPacked) {
        for (int i = 0; i < V::kGroup; ++i) codes[i] = Target::template units<V>(x[i]);
        V::template store_small<Target>(to, codes, x, stream);
    } else {
        for (int i = 0; i < V::kGroup; ++i) codes[i] = Target::template encode<V>(x[i]);
        V::template store<typename Target::T>(to, codes, stream);
    }
}

// Numbers of one group, which `to` and `from` have room for.
template <class V, class Source, class Target>
inline void cast_group(char* to, const char* from, const typename V::U* factor, bool one, bool stream) {
    typename V::U x[V::kGroup];
    V::template load<typename Source::T>(from, x);
    for (int j = 0; j < V::kGroup; ++j) x[j] = V::mul_f(Source::template decode<V>(x[j]), factor[0]);
    if (!one)
        for (int j = 0; j < V::kGroup; ++j) x[j] = V::mul_f(V::mul_f(x[j], factor[1]), factor[2]);
    store<V, Target>(to, x, stream);
}

template <class V, class Source, class Target>
void cast_rows(const CastRows& rows) {
    using From = typename Source::T;
    using To = typename Target::T;
    constexpr int64_t kFromBytes = kGroupSize<V> * sizeof(From), kToBytes = kGroupSize<V> * sizeof(To);
    const int64_t whole = rows.size / kGroupSize<V>, rest = rows.size % kGroupSize<V>, ahead = rows.ahead;
    const bool one = rows.one, stream = rows.stream && whole_lines(rows, sizeof(To));
    const float* next[] = {rows.factor[0], rows.factor[1], rows.factor[2]};
    const char* from_outer = rows.source;
    char* to_outer = rows.target;
    for (int64_t a = 0; a < rows.count[0]; ++a, from_outer += rows.source_step[0], to_outer += rows.target_step[0]) {
        const char* from_row = from_outer;
        char* to_row = to_outer;
        for (int64_t b = 0; b < rows.count[1]; ++b, from_row += rows.source_step[1], to_row += rows.target_step[1]) {
            typename V::U factor[3];
            for (int j = 0; j < 3; ++j) {
                factor[j] = V::each(next[j]);
                next[j] += rows.factor_step;
            }
            const char* from = from_row;
            char* to = to_row;
            for (int64_t i = 0; i < whole; ++i, from += kFromBytes, to += kToBytes) {
                for (int64_t j = 0; j < kFromBytes; j += 64) __builtin_prefetch(beside(from, j + ahead));
                cast_group<V, Source, Target>(to, from, factor, one, stream);
            }
            if (rest) {  // by way of a whole group
                char in[kFromBytes] = {}, out[kToBytes];
                std::memcpy(in, from, static_cast<size_t>(rest) * sizeof(From));
                cast_group<V, Source, Target>(out, in, factor, one, false);
                std::memcpy(to, out, static_cast<size_t>(rest) * sizeof(To));
            }
        }
    }
}

// The largest magnitudes in a row's lanes.
template <class V, class Source>
inline typename V::U most_of_row(const char* from, int64_t bytes) {
    using From = typename Source::T;
    constexpr int64_t kBytes = sizeof(typename V::U);
    constexpr uint32_t kEach = sizeof(From) == 1 ? 0x01010101u : sizeof(From) == 2 ? 0x00010001u : 1u;
    const auto magnitudes = V::all(Source::kMagnitude * kEach);  // which are in the order of their numbers
    auto most = V::all(0);
    int64_t i = 0;
    typename V::U x;
    for (; i + kBytes <= bytes; i += kBytes) {
        std::memcpy(&x, from + i, sizeof(x));
        most = V::template most<From>(most, V::bit_and(x, magnitudes));
    }
    if (i < bytes) {
        x = V::all(0);
        std::memcpy(&x, from + i, static_cast<size_t>(bytes - i));
        most = V::template most<From>(most, V::bit_and(x, magnitudes));
    }
    return most;
}

// The number of a row's largest magnitude.
template <class Source>
inline float largest_number(uint32_t code, const char* from, int64_t bytes) {
    if (code > Source::kLargest) return INFINITY;
    if (Source::kNanIsSign && std::memchr(from, static_cast<int>(Source::kMagnitude + 1), static_cast<size_t>(bytes)))
        return INFINITY;  // a NaN without a magnitude
    const uint32_t number = Source::template decode<Scalar>(code << (32 - 8 * sizeof(typename Source::T)));
    float largest;
    std::memcpy(&largest, &number, sizeof(largest));
    return largest;
}

template <class V, class Source>
void largest_of_rows(const CastRows& rows, float* largest) {
    using From = typename Source::T;
    constexpr int64_t kTogether = V::template kTogether<From>;
    const int64_t bytes = rows.size * static_cast<int64_t>(sizeof(From));
    typename V::U most[kTogether];
    const char* from[kTogether];
    uint32_t codes[kTogether];
    int64_t waiting = 0;
    for (int64_t a = 0; a < rows.count[0]; ++a)
        for (int64_t b = 0; b < rows.count[1]; ++b) {
            from[waiting] = rows.source + a * rows.source_step[0] + b * rows.source_step[1];
            most[waiting] = most_of_row<V, Source>(from[waiting], bytes);
            if (++waiting < kTogether && (a + 1 < rows.count[0] || b + 1 < rows.count[1])) continue;
            if (waiting == kTogether)
                V::template greatest_of_each<From>(most, codes);
            else
                for (int64_t i = 0; i < waiting; ++i) codes[i] = V::template greatest<From>(most[i]);
            for (int64_t i = 0; i < waiting; ++i) *largest++ = largest_number<Source>(codes[i], from[i], bytes);
            waiting = 0;
        }
}

template <class V, class Source>
constexpr void fill(kvl::CastKernels* kernels, int source) {
    kernels->cast[source][0] = cast_rows<V, Source, F32>;
    kernels->cast[source][1] = cast_rows<V, Source, F16>;
    kernels->cast[source][2] = cast_rows<V, Source, Bf16>;
    kernels->cast[source][3] = cast_rows<V, Source, E4m3fn>;
    kernels->cast[source][4] = cast_rows<V, Source, E4m3fnuz>;
    kernels->cast[source][5] = cast_rows<V, Source, E5m2>;
    kernels->largest[source] = largest_of_rows<V, Source>;
}

template <class V>
constexpr kvl::CastKernels cast_kernels() {
    kvl::CastKernels kernels = {};
    fill<V, F32>(&kernels, 0);
    fill<V, F16>(&kernels, 1);
    fill<V, Bf16>(&kernels, 2);
    fill<V, E4m3fn>(&kernels, 3);
    fill<V, E4m3fnuz>(&kernels, 4);
    fill<V, E5m2>(&kernels, 5);
    return kernels;
}

}  // namespace

#endif  // KVLINGUA_CAST_ROWS_H_
