// Loops of casts over rows of numbers, for a type V of vectors; see cast_formats.h for where to include it.
#ifndef KVLINGUA_CAST_ROWS_H_
#define KVLINGUA_CAST_ROWS_H_

#include <cstring>

#include "cast_formats.h"
#include "cast_kernels.h"
#include "cast_largest.h"
#include "cast_scalar.h"
#include "fetch.h"

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
//   kBounds                                whether it gains by kBounded, below
// and for groups of kGroup vectors, with as many numbers as that has lanes, in an order of its own:
//   load<T>(p, x)                          integers T, each to the upper bits of its lane
//   store<T>(p, codes, stream)             and from the lower bits
//   store_small<F, kBounded>(p, units, x, stream)
//                                          from units of F, and the numbers x that they came from. kBounded: none is
//                                          NaN or rounded to more than the largest number of F
template <class V>
constexpr int64_t kGroupSize = V::kGroup * V::kLanes;

// Whether all rows of the target fill lines of 64 bytes.
inline bool whole_lines(const CastRows& rows, int64_t itemsize) {
    int64_t odd = reinterpret_cast<intptr_t>(rows.target) | (rows.size * itemsize);
    for (int i = 0; i < 2; ++i) odd |= rows.count[i] > 1 ? rows.target_step[i] : 0;
    return odd % 64 == 0;
}

template <class V, class Target, bool kBounded>
inline void store(char* to, const typename V::U* x, bool stream) {
    typename V::U codes[V::kGroup];
    if constexpr (Target::kPacked) {
        for (int i = 0; i < V::kGroup; ++i) codes[i] = Target::template units<V>(x[i]);
        V::template store_small<Target, kBounded>(to, codes, x, stream);
    } else {
        for (int i = 0; i < V::kGroup; ++i) codes[i] = Target::template encode<V>(x[i]);
        V::template store<typename Target::T>(to, codes, stream);
    }
}

// Numbers of one group, which `to` and `from` have room for.
template <class V, class Source, class Target, bool kBounded>
inline void cast_group(char* to, const char* from, const typename V::U* factor, bool one, bool stream) {
    typename V::U x[V::kGroup];
    V::template load<typename Source::T>(from, x);
    for (int j = 0; j < V::kGroup; ++j) x[j] = V::mul_f(Source::template decode<V>(x[j]), factor[0]);
    if (!one)
        for (int j = 0; j < V::kGroup; ++j) x[j] = V::mul_f(V::mul_f(x[j], factor[1]), factor[2]);
    store<V, Target, kBounded>(to, x, stream);
}

// Calls row(from, to, factor) for each.
template <class V, class F>
inline void each_row(const CastRows& rows, const F& row) {
    const float* next[] = {rows.factor[0], rows.factor[1], rows.factor[2]};
    const char* from_outer = rows.source;
    char* to_outer = rows.target;
    for (int64_t a = 0; a < rows.count[0]; ++a, from_outer += rows.source_step[0], to_outer += rows.target_step[0]) {
        const char* from = from_outer;
        char* to = to_outer;
        for (int64_t b = 0; b < rows.count[1]; ++b, from += rows.source_step[1], to += rows.target_step[1]) {
            typename V::U factor[3];
            for (int j = 0; j < 3; ++j) {
                factor[j] = V::each(next[j]);
                next[j] += rows.factor_step;
            }
            row(from, to, factor);
        }
    }
}

template <class V, class Source, class Target, bool kBounded>
void cast_all(const CastRows& rows) {
    using From = typename Source::T;
    using To = typename Target::T;
    using U = typename V::U;
    constexpr int64_t kFromBytes = kGroupSize<V> * sizeof(From), kToBytes = kGroupSize<V> * sizeof(To);
    const int64_t whole = rows.size / kGroupSize<V>, rest = rows.size % kGroupSize<V>, ahead = rows.ahead;
    const bool one = rows.one, stream = rows.stream && whole_lines(rows, sizeof(To));
    // What is left comes apart: its calls of functions would have all constants loaded anew in each row.
    if (whole)
        each_row<V>(rows, [&](const char* from, char* to, const U* factor) {
            for (int64_t i = 0; i < whole; ++i, from += kFromBytes, to += kToBytes) {
                for (int64_t j = 0; j < kFromBytes; j += 64) {
                    const char* const later = beside(from, j + ahead);
                    stream ? fetch_line<true>(later) : fetch_line<false>(later);
                }
                cast_group<V, Source, Target, kBounded>(to, from, factor, one, stream);
            }
        });
    if (rest)  // by way of a whole group
        each_row<V>(rows, [&](const char* from, char* to, const U* factor) {
            char in[kFromBytes] = {}, out[kToBytes];
            std::memcpy(in, from + whole * kFromBytes, static_cast<size_t>(rest) * sizeof(From));
            cast_group<V, Source, Target, kBounded>(out, in, factor, one, false);
            std::memcpy(to + whole * kToBytes, out, static_cast<size_t>(rest) * sizeof(To));
        });
}

template <class V, class Source, class Target>
void cast_rows(const CastRows& rows) {
    if constexpr (V::kBounds && Target::kPacked)
        if (rows.bounded) return cast_all<V, Source, Target, true>(rows);
    cast_all<V, Source, Target, false>(rows);
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
constexpr kvl::CastKernels cast_kernels(bool prefetchw) {
    kvl::CastKernels kernels = {};
    kernels.prefetchw = prefetchw;
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
