// The largest magnitude of each row of numbers, for a type V of vectors (cast_rows.h names its operations).
#ifndef KVLINGUA_CAST_LARGEST_H_
#define KVLINGUA_CAST_LARGEST_H_

#include <cstdint>
#include <cstring>

#include "cast_formats.h"
#include "cast_kernels.h"
#include "cast_scalar.h"

namespace {

using kvl::CastRows;

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
#pragma GCC unroll 4
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
    uint32_t number = Source::template decode<Scalar>(code << (32 - 8 * sizeof(typename Source::T)));
    number = code > Source::kLargest ? kInfinity : number;
    if (Source::kNanIsSign && std::memchr(from, static_cast<int>(Source::kMagnitude + 1), static_cast<size_t>(bytes)))
        number = kInfinity;  // a NaN without a magnitude
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
            if (waiting == kTogether) {
                V::template greatest_of_each<From>(most, codes);
                for (int64_t i = 0; i < kTogether; ++i) largest[i] = largest_number<Source>(codes[i], from[i], bytes);
            } else {
                for (int64_t i = 0; i < waiting; ++i)
                    largest[i] = largest_number<Source>(V::template greatest<From>(most[i]), from[i], bytes);
            }
            largest += waiting;
            waiting = 0;
        }
}

}  // namespace

#endif  // KVLINGUA_CAST_LARGEST_H_
