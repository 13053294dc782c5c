// Kernels for x86 CPUs with AVX-512 F and BW: vectors of 64 bytes, a whole cache line.
#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's own header initialises a vector with itself to leave it undefined, and then warns of it.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <cstdint>

#include "kernels.h"
#include "target.h"

KVL_TARGET_BEGIN("avx2,avx512f,avx512bw")
#include "simd_x86.h"

#include "simd_pairs.h"
#include "simd_rows.h"
#include "simd_transpose.h"

namespace {

struct V64 {
    using T = __m512i;
    using Half = V32;
    static constexpr int64_t kBytes = 64;
    static constexpr bool kStreams = true;
    static T load(const char* p) { return _mm512_loadu_si512(p); }
    static void store(char* p, T v) { _mm512_storeu_si512(p, v); }
    static void stream(char* p, T v) { _mm512_stream_si512(reinterpret_cast<T*>(p), v); }
    static T gather(const char* p, int64_t step) {
        const T low = _mm512_inserti32x4(_mm512_castsi128_si512(V16::load(p)), V16::load(p + step), 1);
        return _mm512_inserti32x4(_mm512_inserti32x4(low, V16::load(p + 2 * step), 2), V16::load(p + 3 * step), 3);
    }
    static T pairs(const char* p, int64_t step) {
        return _mm512_inserti64x4(_mm512_castsi256_si512(V32::load(p)), V32::load(p + step), 1);
    }
    static T even(T a, T b) { return _mm512_shuffle_i32x4(a, b, 0x88); }
    static T odd(T a, T b) { return _mm512_shuffle_i32x4(a, b, 0xdd); }
    static void swap_lanes(T* r) {
        const T a = even(r[0], r[1]), b = odd(r[0], r[1]), c = even(r[2], r[3]), d = odd(r[2], r[3]);
        r[0] = even(a, c);
        r[1] = even(b, d);
        r[2] = odd(a, c);
        r[3] = odd(b, d);
    }
    template <int kUnit>
    static T lo(T a, T b) {
        if constexpr (kUnit == 1) return _mm512_unpacklo_epi8(a, b);
        if constexpr (kUnit == 2) return _mm512_unpacklo_epi16(a, b);
        if constexpr (kUnit == 4) return _mm512_unpacklo_epi32(a, b);
        if constexpr (kUnit == 8) return _mm512_unpacklo_epi64(a, b);
    }
    template <int kUnit>
    static T hi(T a, T b) {
        if constexpr (kUnit == 1) return _mm512_unpackhi_epi8(a, b);
        if constexpr (kUnit == 2) return _mm512_unpackhi_epi16(a, b);
        if constexpr (kUnit == 4) return _mm512_unpackhi_epi32(a, b);
        if constexpr (kUnit == 8) return _mm512_unpackhi_epi64(a, b);
    }
};

void fence() { _mm_sfence(); }

}  // namespace
KVL_TARGET_END

namespace kvl {
const Kernels kAvx512 = {
    "avx512",
    rows<V64, false>,
    rows<V64, true>,
    placed_rows<V64, false>,
    placed_rows<V64, true>,
    {transpose<V64, 1>, transpose<V64, 2>, transpose<V64, 4>, transpose<V64, 8>, transpose<V64, 16>},
    {zip<1>, zip<2>, zip<4>},
    {unzip<1>, unzip<2>, unzip<4>},
    fence};
}  // namespace kvl
#endif
