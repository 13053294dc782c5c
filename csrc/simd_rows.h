// Copies of rows, for vectors of any size.
//
// To be included where simd.h may be.
#ifndef KVLINGUA_SIMD_ROWS_H_
#define KVLINGUA_SIMD_ROWS_H_

#include "simd.h"

namespace {

using kvl::Axis;
using kvl::Place;

template <class V, bool kStream>
inline void copy_lines(char* dst, const char* src, int64_t bytes, int64_t ahead) {
    for (int64_t i = 0; i < bytes; i += 64) {
        fetch_line<kStream>(beside(src + i, ahead));
        for (int64_t j = 0; j < 64; j += V::kBytes) put<V, kStream>(dst + i + j, V::load(src + i + j));
    }
}

// A row in lines of 64 bytes, what is shorter than one by memcpy. Past the cache go only whole lines: a row that shares
// lines with its neighbours would have them written in parts, which a long one makes up for.
template <class V, bool kStream>
inline void row(char* to, const char* from, int64_t bytes, int64_t ahead) {
    if (kStream && ((reinterpret_cast<intptr_t>(to) | bytes) & 63) == 0)
        return copy_lines<V, kStream>(to, from, bytes, ahead);
    const bool stream = kStream && bytes >= 512;
    const int64_t head = stream ? -reinterpret_cast<intptr_t>(to) & 63 : 0;
    const int64_t end = head + ((bytes - head) & ~int64_t{63});
    if (head) __builtin_memcpy(to, from, static_cast<size_t>(head));
    if (stream)
        copy_lines<V, kStream>(to + head, from + head, end - head, ahead);
    else
        copy_lines<V, false>(to + head, from + head, end - head, ahead);
    if (end < bytes) __builtin_memcpy(to + end, from + end, static_cast<size_t>(bytes - end));
}

template <class V, bool kStream>
KVL_INLINE void all_rows(char* dst, const char* src, const Axis* loops, int64_t bytes, int64_t ahead) {
    const Axis &x = loops[0], &y = loops[1], &z = loops[2];
    for (int64_t i = 0; i < x.size; ++i)
        for (int64_t j = 0; j < y.size; ++j)
            for (int64_t k = 0; k < z.size; ++k)
                row<V, kStream>(dst + i * x.target + j * y.target + k * z.target,
                                src + i * x.source + j * y.source + k * z.source, bytes, ahead);
}

template <class V, bool kStream>
void rows(char* dst, const char* src, const Axis* loops, int64_t bytes, int64_t ahead) {
    all_rows<V, kStream>(dst, src, loops, bytes, ahead);
}

template <class V, bool kStream>
void placed_rows(char* dst, const char* src, const Place* place, size_t count, const Axis* loops, int64_t bytes,
                 size_t ahead) {
    for (size_t i = 0; i < count; ++i)
        all_rows<V, kStream>(dst + place[i].target, src + place[i].source, loops, bytes,
                             place[i + ahead].source - place[i].source);
}

}  // namespace

#endif  // KVLINGUA_SIMD_ROWS_H_
