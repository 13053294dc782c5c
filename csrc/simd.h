// Vectors of 16 and 32 bytes for the x86 kernels, and what all loops over them need.
//
// To be included inside a KVL_TARGET region: everything is in an anonymous namespace, so that no function compiled for
// one instruction set can be taken by the linker for another file's.
#ifndef KVLINGUA_SIMD_H_
#define KVLINGUA_SIMD_H_

namespace {

// A vector type has kBytes and:
//   load, store, stream      unaligned load and store, and a store past the cache (aligned)
//   gather(p, step)          kBytes / 16 pieces of 16 bytes from p, p + step, ...
//   pairs(p, step)           kBytes / 32 pieces of 32 bytes from p, p + step, ...
//   swap_lanes(r)            transposes kBytes / 16 vectors by their 16-byte lanes
//   even(a, b), odd(a, b)    the even or odd 16-byte lanes of a, then those of b
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
    static T pairs(const char* p, int64_t) { return load(p); }
    static T even(T a, T b) { return _mm256_permute2x128_si256(a, b, 0x20); }
    static T odd(T a, T b) { return _mm256_permute2x128_si256(a, b, 0x31); }
    static void swap_lanes(T* r) {
        const T a = r[0], b = r[1];
        r[0] = even(a, b);
        r[1] = odd(a, b);
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

// Whether a compiler inlines these is not left to it: arrays of vectors must become registers, and GCC takes a function
// that does nothing but fetch for one that does nothing, and drops calls of it.
#define KVL_INLINE inline __attribute__((always_inline))

// An address beside the memory at hand: made of integers, since it may lie in another allocation.
inline const char* beside(const char* p, int64_t distance) {
    return reinterpret_cast<const char*>(reinterpret_cast<intptr_t>(p) + distance);
}

// Fetches the lines of so many rows, one of each, into the cache.
KVL_INLINE void fetch_lines(const char* p, int64_t stride, int64_t rows) {
    for (int64_t i = 0; i < rows; ++i) _mm_prefetch(p + i * stride, _MM_HINT_T0);
}

template <class V, bool kStream>
KVL_INLINE void put(char* p, typename V::T v) {
    if (kStream)
        V::stream(p, v);
    else
        V::store(p, v);
}

}  // namespace

#endif  // KVLINGUA_SIMD_H_
