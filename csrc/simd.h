// Loops shared by the x86 kernels, over vectors of 16, 32 or 64 bytes.
//
// To be included inside a KVL_TARGET region: everything is in an anonymous namespace, so that no function compiled for
// one instruction set can be taken by the linker for another file's.
#ifndef KVLINGUA_SIMD_H_
#define KVLINGUA_SIMD_H_

namespace {

using kvl::Axis;

// A vector type has kBytes and:
//   load, store, stream      unaligned load and store, and a store past the cache (aligned)
//   gather(p, step)          kBytes / 16 pieces of 16 bytes from p, p + step, ...
//   lo<n>, hi<n>             interleave the lower or upper halves of each 16-byte lane, by units of n bytes
struct V16 {
    using T = __m128i;
    static constexpr int64_t kBytes = 16;
    static T load(const char* p) { return _mm_loadu_si128(reinterpret_cast<const T*>(p)); }
    static void store(char* p, T v) { _mm_storeu_si128(reinterpret_cast<T*>(p), v); }
    static void stream(char* p, T v) { _mm_stream_si128(reinterpret_cast<T*>(p), v); }
    static T gather(const char* p, int64_t) { return load(p); }
    template <int kUnit>
    static T lo(T a, T b) {
        if constexpr (kUnit == 1) return _mm_unpacklo_epi8(a, b);
        if constexpr (kUnit == 2) return _mm_unpacklo_epi16(a, b);
        if constexpr (kUnit == 4) return _mm_unpacklo_epi32(a, b);
        if constexpr (kUnit == 8) return _mm_unpacklo_epi64(a, b);
    }
    template <int kUnit>
    static T hi(T a, T b) {
        if constexpr (kUnit == 1) return _mm_unpackhi_epi8(a, b);
        if constexpr (kUnit == 2) return _mm_unpackhi_epi16(a, b);
        if constexpr (kUnit == 4) return _mm_unpackhi_epi32(a, b);
        if constexpr (kUnit == 8) return _mm_unpackhi_epi64(a, b);
    }
};

struct V32 {
    using T = __m256i;
    static constexpr int64_t kBytes = 32;
    static T load(const char* p) { return _mm256_loadu_si256(reinterpret_cast<const T*>(p)); }
    static void store(char* p, T v) { _mm256_storeu_si256(reinterpret_cast<T*>(p), v); }
    static void stream(char* p, T v) { _mm256_stream_si256(reinterpret_cast<T*>(p), v); }
    static T gather(const char* p, int64_t step) {
        return _mm256_inserti128_si256(_mm256_castsi128_si256(V16::load(p)), V16::load(p + step), 1);
    }
    template <int kUnit>
    static T lo(T a, T b) {
        if constexpr (kUnit == 1) return _mm256_unpacklo_epi8(a, b);
        if constexpr (kUnit == 2) return _mm256_unpacklo_epi16(a, b);
        if constexpr (kUnit == 4) return _mm256_unpacklo_epi32(a, b);
        if constexpr (kUnit == 8) return _mm256_unpacklo_epi64(a, b);
    }
    template <int kUnit>
    static T hi(T a, T b) {
        if constexpr (kUnit == 1) return _mm256_unpackhi_epi8(a, b);
        if constexpr (kUnit == 2) return _mm256_unpackhi_epi16(a, b);
        if constexpr (kUnit == 4) return _mm256_unpackhi_epi32(a, b);
        if constexpr (kUnit == 8) return _mm256_unpackhi_epi64(a, b);
    }
};

// An address beside the memory at hand: made of integers, since it may lie in another allocation.
inline const char* beside(const char* p, int64_t distance) {
    return reinterpret_cast<const char*>(reinterpret_cast<intptr_t>(p) + distance);
}

template <class V, bool kStream>
inline void put(char* p, typename V::T v) {
    if (kStream)
        V::stream(p, v);
    else
        V::store(p, v);
}

// Transposes E rows of E units within each 16-byte lane: log2(E) times the first half is interleaved with the second.
template <class V, int kUnit, int kStep = kUnit>
inline void transpose_lanes(typename V::T* r) {
    if constexpr (kStep < 16) {
        constexpr int kRows = 16 / kUnit;
        typename V::T t[kRows];
        for (int i = 0; i < kRows / 2; ++i) {
            t[2 * i] = V::template lo<kUnit>(r[i], r[i + kRows / 2]);
            t[2 * i + 1] = V::template hi<kUnit>(r[i], r[i + kRows / 2]);
        }
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
    for (int i = 0; i < kRows; ++i) r[i] = V::gather(src + i * src_stride, src_stride * kRows);
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

// Wide tiles first, then what is left of the rows in narrower ones.
template <class Wide, int kUnit, bool kStream>
inline void transpose_tiles(char* dst, int64_t dst_stride, const char* src, int64_t src_stride, int64_t rows,
                            int64_t cols, int64_t ahead) {
    constexpr int64_t kCols = 16 / kUnit, kWide = Wide::kBytes / kUnit;
    int64_t c = 0;
    for (; c + kCols <= cols; c += kCols) {
        const char* in = src + c * kUnit;
        char* out = dst + c * dst_stride;
        int64_t r = 0;
        for (; r + kWide <= rows; r += kWide) {
            if (c % (64 / kUnit) == 0)
                for (int64_t i = 0; i < kWide; ++i) _mm_prefetch(beside(in + (r + i) * src_stride, ahead), _MM_HINT_T0);
            tile<Wide, kUnit, kStream>(out + r * kUnit, dst_stride, in + r * src_stride, src_stride);
        }
        if (Wide::kBytes > 32 && r + 32 / kUnit <= rows) {
            tile<V32, kUnit, kStream>(out + r * kUnit, dst_stride, in + r * src_stride, src_stride);
            r += 32 / kUnit;
        }
        if (r + kCols <= rows) {
            tile<V16, kUnit, kStream>(out + r * kUnit, dst_stride, in + r * src_stride, src_stride);
            r += kCols;
        }
        transpose_scalar<kUnit>(out + r * kUnit, dst_stride, in + r * src_stride, src_stride, rows - r, kCols);
    }
    transpose_scalar<kUnit>(dst + c * dst_stride, dst_stride, src + c * kUnit, src_stride, rows, cols - c);
}

template <class Wide, int kUnit>
void transpose(char* dst, int64_t dst_stride, const char* src, int64_t src_stride, int64_t rows, int64_t cols,
               int64_t ahead, bool stream) {
    // Only whole lines are worth streaming: rows of the target that fill them, or that follow each other without a gap.
    // A streaming store wants an address that is a multiple of its vector's size.
    const int64_t bytes = rows * kUnit;
    const int64_t odd = reinterpret_cast<intptr_t>(dst) | dst_stride | bytes;
    if (stream && odd % 64 == 0)
        transpose_tiles<Wide, kUnit, true>(dst, dst_stride, src, src_stride, rows, cols, ahead);
    else if (stream && odd % 32 == 0 && dst_stride == bytes)
        transpose_tiles<V32, kUnit, true>(dst, dst_stride, src, src_stride, rows, cols, ahead);
    else
        transpose_tiles<Wide, kUnit, false>(dst, dst_stride, src, src_stride, rows, cols, ahead);
}

template <class V, bool kStream>
inline void copy_lines(char* dst, const char* src, int64_t bytes, int64_t ahead) {
    for (int64_t i = 0; i < bytes; i += 64) {
        _mm_prefetch(beside(src + i, ahead), _MM_HINT_T0);
        for (int64_t j = 0; j < 64; j += V::kBytes) put<V, kStream>(dst + i + j, V::load(src + i + j));
    }
}

// Rows in lines of 64 bytes; what is shorter than one by memcpy.
template <class V, bool kStream, bool kAligned>
inline void copy_rows(char* dst, const char* src, const Axis* loops, int64_t bytes, int64_t ahead) {
    const Axis &x = loops[0], &y = loops[1], &z = loops[2];
    for (int64_t i = 0; i < x.size; ++i)
        for (int64_t j = 0; j < y.size; ++j)
            for (int64_t k = 0; k < z.size; ++k) {
                char* to = dst + i * x.target + j * y.target + k * z.target;
                const char* from = src + i * x.source + j * y.source + k * z.source;
                const int64_t head = kAligned || !kStream ? 0 : -reinterpret_cast<intptr_t>(to) & 63;
                const int64_t lines = (bytes - head) & ~int64_t{63};
                if (!kAligned && head) __builtin_memcpy(to, from, static_cast<size_t>(head));
                copy_lines<V, kStream>(to + head, from + head, lines, ahead);
                const int64_t done = head + lines;
                if (!kAligned && done < bytes)
                    __builtin_memcpy(to + done, from + done, static_cast<size_t>(bytes - done));
            }
}

template <class V>
void rows(char* dst, const char* src, const Axis* loops, int64_t bytes, int64_t ahead) {
    copy_rows<V, false, false>(dst, src, loops, bytes, ahead);
}

template <class V>
void stream_rows(char* dst, const char* src, const Axis* loops, int64_t bytes, int64_t ahead) {
    const int64_t odd = reinterpret_cast<intptr_t>(dst) | loops[0].target | loops[1].target | loops[2].target | bytes;
    if ((odd & 63) == 0)
        copy_rows<V, true, true>(dst, src, loops, bytes, ahead);
    else if (bytes >= 512)
        copy_rows<V, true, false>(dst, src, loops, bytes, ahead);
    else  // short rows that share lines with their neighbours: past the cache each line would be written in pieces
        copy_rows<V, false, false>(dst, src, loops, bytes, ahead);
}

}  // namespace

#endif  // KVLINGUA_SIMD_H_
