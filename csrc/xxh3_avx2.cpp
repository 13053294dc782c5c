// XXH3's long loop for x86 CPUs with AVX2: the eight accumulators are two vectors.
#if defined(__x86_64__)
#include <immintrin.h>

#include "target.h"
#include "xxh3.h"

KVL_TARGET_BEGIN("avx2")

namespace {

using V = __m256i;

inline V load(const void* p) { return _mm256_loadu_si256(static_cast<const V*>(p)); }

inline V added(V sum, V data, V key) {
    const V value = _mm256_xor_si256(data, key);
    const V product = _mm256_mul_epu32(value, _mm256_srli_epi64(value, 32));
    return _mm256_add_epi64(sum, _mm256_add_epi64(product, _mm256_shuffle_epi32(data, _MM_SHUFFLE(1, 0, 3, 2))));
}

inline V scrambled(V sum, V key) {
    const V value = _mm256_xor_si256(_mm256_xor_si256(sum, _mm256_srli_epi64(sum, 47)), key);
    const V prime = _mm256_set1_epi64x(0x9E3779B1);
    const V high = _mm256_mul_epu32(_mm256_srli_epi64(value, 32), prime);
    return _mm256_add_epi64(_mm256_mul_epu32(value, prime), _mm256_slli_epi64(high, 32));
}

}  // namespace

namespace kvl {

void xxh3_blocks_avx2(uint64_t* accumulators, const char* data, size_t blocks) {
    V a = load(accumulators), b = load(accumulators + 4);
    const unsigned char* last = kXxh3Secret + sizeof kXxh3Secret - kStripeBytes;
    for (; blocks; --blocks) {
        for (size_t i = 0; i < kStripesPerBlock; ++i, data += kStripeBytes) {
            a = added(a, load(data), load(kXxh3Secret + 8 * i));
            b = added(b, load(data + 32), load(kXxh3Secret + 8 * i + 32));
        }
        a = scrambled(a, load(last));
        b = scrambled(b, load(last + 32));
    }
    _mm256_storeu_si256(reinterpret_cast<V*>(accumulators), a);
    _mm256_storeu_si256(reinterpret_cast<V*>(accumulators + 4), b);
}

}  // namespace kvl

KVL_TARGET_END
#endif
