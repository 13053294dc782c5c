// Transpositions, for vectors of any size.
//
// To be included where simd.h may be.
#ifndef KVLINGUA_SIMD_TRANSPOSE_H_
#define KVLINGUA_SIMD_TRANSPOSE_H_

#include "simd.h"

namespace {

// Transposes E rows of E units within each 16-byte lane: log2(E) times the first half is interleaved with the second.
// Unrolled by order, here and in a tile: left to itself clang keeps 16 vectors in memory, and goes there each time.
template <class V, int kUnit, int kStep = kUnit>
KVL_INLINE void transpose_lanes(typename V::T* r) {
    if constexpr (kStep < 16) {
        constexpr int kRows = 16 / kUnit;
        typename V::T t[kRows];
#pragma GCC unroll 16
        for (int i = 0; i < kRows / 2; ++i) {
            t[2 * i] = V::template lo<kUnit>(r[i], r[i + kRows / 2]);
            t[2 * i + 1] = V::template hi<kUnit>(r[i], r[i + kRows / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < kRows; ++i) r[i] = t[i];
        transpose_lanes<V, kUnit, 2 * kStep>(r);
    }
}

// One tile: kBytes / unit rows and E = 16 / unit columns, transposed. Lane l of vector i takes row l * E + i, so that
// transposing within the lanes leaves every column's rows in order across them.
template <class V, int kUnit, bool kStream>
inline void tile(char* dst, int64_t dst_stride, const char* src, int64_t src_stride) {
    constexpr int kRows = 16 / kUnit;
    typename V::T r[kRows];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) r[i] = V::gather(src + i * src_stride, src_stride * kRows);
    transpose_lanes<V, kUnit>(r);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) put<V, kStream>(dst + i * dst_stride, r[i]);
}

// The same for twice as many columns, with half as many loads: those of 16 bytes from the same place in many lines get
// in each other's way in the first-level cache. Even lanes hold the first E columns, odd ones the others.
template <class V, int kUnit, bool kStream>
inline void wide_tile(char* dst, int64_t dst_stride, const char* src, int64_t src_stride) {
    constexpr int kRows = 16 / kUnit;
    typename V::T a[kRows], b[kRows];
    const char* half = src + src_stride * (V::kBytes / kUnit / 2);
    for (int i = 0; i < kRows; ++i) a[i] = V::pairs(src + i * src_stride, src_stride * kRows);
    transpose_lanes<V, kUnit>(a);
    for (int i = 0; i < kRows; ++i) b[i] = V::pairs(half + i * src_stride, src_stride * kRows);
    transpose_lanes<V, kUnit>(b);
    for (int i = 0; i < kRows; ++i) put<V, kStream>(dst + i * dst_stride, V::even(a[i], b[i]));
    for (int i = 0; i < kRows; ++i) put<V, kStream>(dst + (kRows + i) * dst_stride, V::odd(a[i], b[i]));
}

// Rows that are one lane wide in the target and follow each other there: E rows, so many columns as a vector holds.
// Lane l of vector i has column l * E + i in the end, which is brought into order.
template <class V, int kUnit, bool kStream>
inline void narrow_tile(char* dst, const char* src, int64_t src_stride) {
    constexpr int kRows = 16 / kUnit, kLanes = V::kBytes / 16;
    typename V::T r[kRows];
    for (int i = 0; i < kRows; ++i) r[i] = V::load(src + i * src_stride);
    transpose_lanes<V, kUnit>(r);
    for (int i = 0; i < kRows; i += kLanes) {
        V::swap_lanes(r + i);
        for (int l = 0; l < kLanes; ++l) put<V, kStream>(dst + (l * kRows + i) * 16, r[i + l]);
    }
}

// The other way: columns of one lane's width, rows that follow each other in the source.
template <class V, int kUnit, bool kStream>
inline void thin_tile(char* dst, int64_t dst_stride, const char* src) {
    constexpr int kRows = 16 / kUnit, kLanes = V::kBytes / 16;
    typename V::T r[kRows];
    for (int i = 0; i < kRows; i += kLanes) {
        for (int l = 0; l < kLanes; ++l) r[i + l] = V::load(src + (l * kRows + i) * 16);
        V::swap_lanes(r + i);
    }
    transpose_lanes<V, kUnit>(r);
    for (int i = 0; i < kRows; ++i) put<V, kStream>(dst + i * dst_stride, r[i]);
}

template <int kUnit>
inline void transpose_scalar(char* dst, int64_t dst_stride, const char* src, int64_t src_stride, int64_t rows,
                             int64_t cols) {
    for (int64_t c = 0; c < cols; ++c)
        for (int64_t r = 0; r < rows; ++r)
            __builtin_memcpy(dst + c * dst_stride + r * kUnit, src + r * src_stride + c * kUnit, kUnit);
}

// So many columns of a block of rows that is kBytes wide in the target. Lines that take two vectors are put together
// first: past the cache the halves of a line must follow each other closely.
template <class V, int kUnit, bool kStream, int64_t kBytes, int64_t kCols>
KVL_INLINE void transpose_cols(char* dst, int64_t dst_stride, const char* src, int64_t src_stride) {
    constexpr int64_t kRows = V::kBytes / kUnit;
    constexpr bool kHalves = kStream && V::kBytes == 32 && kBytes == 64;
    alignas(64) char lines[kHalves ? kCols * kBytes : 1];
    char* to = kHalves ? lines : dst;
    const int64_t step = kHalves ? kBytes : dst_stride;
    for (int64_t r = 0; r < kBytes / kUnit; r += kRows) {
        if constexpr (kCols == 16 / kUnit)
            tile<V, kUnit, kStream && !kHalves>(to + r * kUnit, step, src + r * src_stride, src_stride);
        else
            wide_tile<V, kUnit, kStream && !kHalves>(to + r * kUnit, step, src + r * src_stride, src_stride);
    }
    if constexpr (kHalves)
        for (int64_t c = 0; c < kCols; ++c)
            for (int64_t i = 0; i < kBytes; i += 32)
                V::stream(dst + c * dst_stride + i, V::load(lines + c * kBytes + i));
}

// One block of rows, kBytes wide in the target, for all columns. `fetch`: whether its lines are fetched `ahead`.
template <class V, int kUnit, bool kStream, int64_t kBytes>
KVL_INLINE void transpose_block(char* dst, int64_t dst_stride, const char* src, int64_t src_stride, int64_t cols,
                                int64_t ahead, bool fetch) {
    constexpr int64_t kCols = 16 / kUnit, kWide = V::kBytes > 16 && kUnit > 1 ? 2 * kCols : kCols;
    int64_t c = 0;
    for (; c + kWide <= cols; c += kWide) {
        const char* in = src + c * kUnit;
        if (fetch && c % (64 / kUnit) == 0) fetch_lines<kStream>(beside(in, ahead), src_stride, kBytes / kUnit);
        transpose_cols<V, kUnit, kStream, kBytes, kWide>(dst + c * dst_stride, dst_stride, in, src_stride);
    }
    if (c + kCols <= cols) {
        transpose_cols<V, kUnit, kStream, kBytes, kCols>(dst + c * dst_stride, dst_stride, src + c * kUnit, src_stride);
        c += kCols;
    }
    transpose_scalar<kUnit>(dst + c * dst_stride, dst_stride, src + c * kUnit, src_stride, kBytes / kUnit, cols - c);
}

// Whole lines of the target first, then what is left of the rows in narrower blocks.
template <class V, int kUnit, bool kStream>
inline void transpose_blocks(char* dst, int64_t dst_stride, const char* src, int64_t src_stride, int64_t rows,
                             int64_t cols, int64_t ahead, bool fetch) {
    int64_t r = 0;
    for (; r + 64 / kUnit <= rows; r += 64 / kUnit)
        transpose_block<V, kUnit, kStream, 64>(dst + r * kUnit, dst_stride, src + r * src_stride, src_stride, cols,
                                               ahead, fetch);
    if (r + 32 / kUnit <= rows) {
        transpose_block<typename V::Half, kUnit, kStream, 32>(dst + r * kUnit, dst_stride, src + r * src_stride,
                                                              src_stride, cols, ahead, fetch);
        r += 32 / kUnit;
    }
    if (r + 16 / kUnit <= rows) {
        transpose_block<V16, kUnit, kStream, 16>(dst + r * kUnit, dst_stride, src + r * src_stride, src_stride, cols,
                                                 ahead, fetch);
        r += 16 / kUnit;
    }
    transpose_scalar<kUnit>(dst + r * kUnit, dst_stride, src + r * src_stride, src_stride, rows - r, cols);
}

// Lanes that lie one behind the other, on either side: whole vectors of them are read or written.
template <class V, int kUnit, bool kStream>
inline void narrow(char* dst, const char* src, int64_t src_stride, int64_t cols, int64_t ahead) {
    constexpr int64_t kRows = 16 / kUnit, kCols = V::kBytes / kUnit;
    int64_t c = 0;
    for (; c + kCols <= cols; c += kCols) {
        fetch_lines<kStream>(beside(src + c * kUnit, ahead), src_stride, kRows);
        narrow_tile<V, kUnit, kStream>(dst + c * 16, src + c * kUnit, src_stride);
    }
    transpose_blocks<V16, kUnit, false>(dst + c * 16, 16, src + c * kUnit, src_stride, kRows, cols - c, ahead, true);
}

template <class V, int kUnit, bool kStream>
inline void thin(char* dst, int64_t dst_stride, const char* src, int64_t rows, int64_t ahead) {
    constexpr int64_t kRows = V::kBytes / kUnit, kCols = 16 / kUnit;
    int64_t r = 0;
    for (; r + kRows <= rows; r += kRows) {
        fetch_lines<kStream>(beside(src + r * 16, ahead), 64, kRows / 4);
        thin_tile<V, kUnit, kStream>(dst + r * kUnit, dst_stride, src + r * 16);
    }
    transpose_blocks<V16, kUnit, false>(dst + r * kUnit, dst_stride, src + r * 16, 16, rows - r, kCols, ahead, true);
}

// Block by block the source is read straight on, and its target written in many places: good if that is one piece of
// memory in the end, while rows of the target that lie apart are better written one by one, a few columns at a time.
template <class Wide, int kUnit, bool kStream>
inline void transpose_all(char* dst, int64_t dst_stride, const char* src, int64_t src_stride, int64_t rows,
                          int64_t cols, int64_t ahead) {
    if constexpr (Wide::kBytes > 16 && 16 / kUnit >= Wide::kBytes / 16) {
        if (rows * kUnit == 16 && dst_stride == 16)
            return narrow<Wide, kUnit, kStream>(dst, src, src_stride, cols, ahead);
        if (cols * kUnit == 16 && src_stride == 16)
            return thin<Wide, kUnit, kStream>(dst, dst_stride, src, rows, ahead);
    }
    const int64_t step = dst_stride == rows * kUnit ? cols : 32 / kUnit;
    for (int64_t c = 0; c < cols; c += step)
        transpose_blocks<Wide, kUnit, kStream>(dst + c * dst_stride, dst_stride, src + c * kUnit, src_stride, rows,
                                               step < cols - c ? step : cols - c, ahead, c % (64 / kUnit) == 0);
}

template <class Wide, int kUnit>
void transpose(char* dst, int64_t dst_stride, const char* src, int64_t src_stride, int64_t rows, int64_t cols,
               int64_t ahead, bool stream) {
    // Only whole lines are worth streaming: rows of the target that fill them, or that follow each other without a gap.
    // A streaming store wants an address that is a multiple of its vector's size.
    constexpr bool kStreams = Wide::kStreams;
    const int64_t bytes = rows * kUnit;
    const bool dense = dst_stride == bytes;
    const int64_t odd = reinterpret_cast<intptr_t>(dst) | (dense ? bytes * cols : dst_stride | bytes);
    if (kStreams && stream && odd % 64 == 0 && (bytes % 64 == 0 || bytes == 16))
        transpose_all<Wide, kUnit, kStreams>(dst, dst_stride, src, src_stride, rows, cols, ahead);
    else if (kStreams && stream && odd % 32 == 0 && bytes % 32 == 0 && dense)
        transpose_all<typename Wide::Half, kUnit, kStreams>(dst, dst_stride, src, src_stride, rows, cols, ahead);
    else
        transpose_all<Wide, kUnit, false>(dst, dst_stride, src, src_stride, rows, cols, ahead);
}

}  // namespace

#endif  // KVLINGUA_SIMD_TRANSPOSE_H_
