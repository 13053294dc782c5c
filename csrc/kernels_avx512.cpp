// Kernels for x86 CPUs with AVX-512 F and BW: vectors of 64 bytes, a whole cache line.
#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's own header initialises a vector with itself to leave it undefined, and then warns of it.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstdint>

#include "kernels.h"
#include "target.h"

KVL_TARGET_BEGIN("avx2,avx512f,avx512bw")
#include "simd.h"

namespace {

struct V64 {
    using T = __m512i;
    static constexpr int64_t kBytes = 64;
    static T load(const char* p) { return _mm512_loadu_si512(p); }
    static void store(char* p, T v) { _mm512_storeu_si512(p, v); }
    static void stream(char* p, T v) { _mm512_stream_si512(reinterpret_cast<T*>(p), v); }
    static T gather(const char* p, int64_t step) {
        const T low = _mm512_inserti32x4(_mm512_castsi128_si512(V16::load(p)), V16::load(p + step), 1);
        return _mm512_inserti32x4(_mm512_inserti32x4(low, V16::load(p + 2 * step), 2), V16::load(p + 3 * step), 3);
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
    rows<V64>,
    stream_rows<V64>,
    {transpose<V64, 1>, transpose<V64, 2>, transpose<V64, 4>, transpose<V64, 8>, transpose<V64, 16>},
    fence};
}  // namespace kvl
#endif
