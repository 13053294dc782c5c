// Vectors of 16 and 32 bytes for x86 CPUs with AVX2. simd.h says what they do.
//
// To be included inside a KVL_TARGET region that has AVX2.
#ifndef KVLINGUA_SIMD_X86_H_
#define KVLINGUA_SIMD_X86_H_

namespace {

struct V32;

struct V16 {
    using T = __m128i;
    using Half = V32;
    static constexpr int64_t kBytes = 16;
    static constexpr bool kStreams = true;
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
    template <int kUnit>
    static void part(T* a, T* b) {
        const T x = parted<kUnit>(*a), y = parted<kUnit>(*b);
        *a = _mm_unpacklo_epi64(x, y);
        *b = _mm_unpackhi_epi64(x, y);
    }

  private:
    // The units with even numbers in the lower half, the others in the upper one.
    template <int kUnit>
    static T parted(T v) {
        if constexpr (kUnit == 1)
            return _mm_shuffle_epi8(v, _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
        if constexpr (kUnit == 2)
            return _mm_shuffle_epi8(v, _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
        if constexpr (kUnit == 4) return _mm_shuffle_epi32(v, 0xd8);
    }
};

struct V32 {
    using T = __m256i;
    using Half = V32;
    static constexpr int64_t kBytes = 32;
    static constexpr bool kStreams = true;
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

}  // namespace

#endif  // KVLINGUA_SIMD_X86_H_
