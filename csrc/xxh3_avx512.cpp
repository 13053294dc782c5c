// XXH3's long loop for x86 CPUs with AVX-512: the eight accumulators are one vector.
#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's own header initialises a vector with itself to leave it undefined, and then warns of it.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "target.h"
#include "xxh3.h"

KVL_TARGET_BEGIN("avx2,avx512f,avx512bw")

namespace {

using V = __m512i;

inline V added(V sum, V data, V key) {
    const V value = _mm512_xor_si512(data, key);
    const V product = _mm512_mul_epu32(value, _mm512_srli_epi64(value, 32));
    const V swapped = _mm512_shuffle_epi32(data, static_cast<_MM_PERM_ENUM>(_MM_SHUFFLE(1, 0, 3, 2)));
    return _mm512_add_epi64(sum, _mm512_add_epi64(product, swapped));
}

inline V scrambled(V sum, V key) {
    const V value = _mm512_xor_si512(_mm512_xor_si512(sum, _mm512_srli_epi64(sum, 47)), key);
    const V prime = _mm512_set1_epi64(0x9E3779B1);
    const V high = _mm512_mul_epu32(_mm512_srli_epi64(value, 32), prime);
    return _mm512_add_epi64(_mm512_mul_epu32(value, prime), _mm512_slli_epi64(high, 32));
}

}  // namespace

namespace kvl {

void xxh3_blocks_avx512(uint64_t* accumulators, const char* data, size_t blocks) {
    V sum = _mm512_loadu_si512(accumulators);
    V key[kStripesPerBlock];  // they stay in registers: from memory each would cross a cache line
#pragma GCC unroll 16
    for (size_t i = 0; i < kStripesPerBlock; ++i) key[i] = _mm512_loadu_si512(kXxh3Secret + 8 * i);
    const V last = _mm512_loadu_si512(kXxh3Secret + sizeof kXxh3Secret - kStripeBytes);
    for (; blocks; --blocks, data += kBlockBytes) {
#pragma GCC unroll 16
        for (size_t i = 0; i < kStripesPerBlock; ++i) {
            __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(data) +
                                                             (i + kStripesPerBlock) * kStripeBytes));
            sum = added(sum, _mm512_loadu_si512(data + i * kStripeBytes), key[i]);
        }
        sum = scrambled(sum, last);
    }
    _mm512_storeu_si512(accumulators, sum);
}

}  // namespace kvl

KVL_TARGET_END
#endif
