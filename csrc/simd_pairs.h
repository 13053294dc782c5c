// Rows that are interleaved in pairs, and the other way: tiles of AMX, the two usual orders of rotated dims.
//
// To be included where simd.h may be. Vectors of 16 bytes are as quick as memory is here.
#ifndef KVLINGUA_SIMD_PAIRS_H_
#define KVLINGUA_SIMD_PAIRS_H_

#include "simd.h"

namespace {

using kvl::Axis;

template <int kUnit, bool kStream>
inline void zip_blocks(char* dst, const char* src, int64_t stride, int64_t units, const Axis& blocks, int64_t ahead) {
    const int64_t bytes = units * kUnit;
    for (int64_t k = 0; k < blocks.size; ++k, dst += blocks.target, src += blocks.source) {
        const char* other = src + stride;
        int64_t i = 0;
        for (; i + 16 <= bytes; i += 16) {
            if (i % 64 == 0) {
                fetch_line<kStream>(beside(src + i, ahead));
                fetch_line<kStream>(beside(other + i, ahead));
            }
            const V16::T a = V16::load(src + i), b = V16::load(other + i);
            put<V16, kStream>(dst + 2 * i, V16::lo<kUnit>(a, b));
            put<V16, kStream>(dst + 2 * i + 16, V16::hi<kUnit>(a, b));
        }
        for (; i < bytes; i += kUnit) {
            __builtin_memcpy(dst + 2 * i, src + i, kUnit);
            __builtin_memcpy(dst + 2 * i + kUnit, other + i, kUnit);
        }
    }
}

template <int kUnit, bool kStream>
inline void unzip_blocks(char* dst, const char* src, int64_t stride, int64_t units, const Axis& blocks, int64_t ahead) {
    const int64_t bytes = units * kUnit;
    for (int64_t k = 0; k < blocks.size; ++k, dst += blocks.target, src += blocks.source) {
        char* other = dst + stride;
        int64_t i = 0;
        for (; i + 16 <= bytes; i += 16) {
            if (i % 32 == 0) fetch_line<kStream>(beside(src + 2 * i, ahead));
            V16::T a = V16::load(src + 2 * i), b = V16::load(src + 2 * i + 16);
            V16::part<kUnit>(&a, &b);
            put<V16, kStream>(dst + i, a);
            put<V16, kStream>(other + i, b);
        }
        for (; i < bytes; i += kUnit) {
            __builtin_memcpy(dst + i, src + 2 * i, kUnit);
            __builtin_memcpy(other + i, src + 2 * i + kUnit, kUnit);
        }
    }
}

// Whether pieces of a row of the target, `blocks.target` apart, make whole lines.
inline bool whole_lines(const char* dst, int64_t bytes, const Axis& blocks) {
    const bool dense = blocks.target == bytes || blocks.size == 1;
    const int64_t odd = reinterpret_cast<intptr_t>(dst) | (dense ? bytes * blocks.size : bytes | blocks.target);
    return odd % 64 == 0 && bytes % 32 == 0;
}

template <int kUnit>
void zip(char* dst, const char* src, int64_t stride, int64_t units, const Axis& blocks, int64_t ahead, bool stream) {
    if (V16::kStreams && stream && whole_lines(dst, 2 * units * kUnit, blocks))
        zip_blocks<kUnit, V16::kStreams>(dst, src, stride, units, blocks, ahead);
    else
        zip_blocks<kUnit, false>(dst, src, stride, units, blocks, ahead);
}

template <int kUnit>
void unzip(char* dst, const char* src, int64_t stride, int64_t units, const Axis& blocks, int64_t ahead, bool stream) {
    if (V16::kStreams && stream && stride % 64 == 0 && whole_lines(dst, units * kUnit, blocks))
        unzip_blocks<kUnit, V16::kStreams>(dst, src, stride, units, blocks, ahead);
    else
        unzip_blocks<kUnit, false>(dst, src, stride, units, blocks, ahead);
}

}  // namespace

#endif  // KVLINGUA_SIMD_PAIRS_H_
