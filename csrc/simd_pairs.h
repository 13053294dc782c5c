// Rows that are interleaved in pairs, and the other way: tiles of AMX, the two usual orders of rotated dims.
//
// To be included inside a KVL_TARGET region, as simd.h. Vectors of 16 bytes are as quick as memory is here.
#ifndef KVLINGUA_SIMD_PAIRS_H_
#define KVLINGUA_SIMD_PAIRS_H_

#include "simd.h"

namespace {

using kvl::Axis;

// The units with even numbers in the lower half, the others in the upper one.
template <int kUnit>
inline __m128i part(__m128i v) {
    if constexpr (kUnit == 1)
        return _mm_shuffle_epi8(v, _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
    if constexpr (kUnit == 2)
        return _mm_shuffle_epi8(v, _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
    if constexpr (kUnit == 4) return _mm_shuffle_epi32(v, 0xd8);
}

template <int kUnit, bool kStream>
inline void zip_blocks(char* dst, const char* src, int64_t stride, int64_t units, const Axis& blocks, int64_t ahead) {
    const int64_t bytes = units * kUnit;
    for (int64_t k = 0; k < blocks.size; ++k, dst += blocks.target, src += blocks.source) {
        const char* other = src + stride;
        int64_t i = 0;
        for (; i + 16 <= bytes; i += 16) {
            if (i % 64 == 0) {
                _mm_prefetch(beside(src + i, ahead), _MM_HINT_T0);
                _mm_prefetch(beside(other + i, ahead), _MM_HINT_T0);
            }
            const __m128i a = V16::load(src + i), b = V16::load(other + i);
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
            if (i % 32 == 0) _mm_prefetch(beside(src + 2 * i, ahead), _MM_HINT_T0);
            const __m128i a = part<kUnit>(V16::load(src + 2 * i)), b = part<kUnit>(V16::load(src + 2 * i + 16));
            put<V16, kStream>(dst + i, _mm_unpacklo_epi64(a, b));
            put<V16, kStream>(other + i, _mm_unpackhi_epi64(a, b));
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
    if (stream && whole_lines(dst, 2 * units * kUnit, blocks))
        zip_blocks<kUnit, true>(dst, src, stride, units, blocks, ahead);
    else
        zip_blocks<kUnit, false>(dst, src, stride, units, blocks, ahead);
}

template <int kUnit>
void unzip(char* dst, const char* src, int64_t stride, int64_t units, const Axis& blocks, int64_t ahead, bool stream) {
    if (stream && stride % 64 == 0 && whole_lines(dst, units * kUnit, blocks))
        unzip_blocks<kUnit, true>(dst, src, stride, units, blocks, ahead);
    else
        unzip_blocks<kUnit, false>(dst, src, stride, units, blocks, ahead);
}

}  // namespace

#endif  // KVLINGUA_SIMD_PAIRS_H_
