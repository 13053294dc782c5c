// XXH3's long loop for x86 CPUs with AVX2: the eight accumulators are two vectors.
#if defined(__x86_64__)
#include <immintrin.h>

#include "target.h"
#include "xxh3.h"

KVL_TARGET_BEGIN("avx2")
#include "xxh3_blocks.h"

namespace {

struct Four {
    using T = __m256i;
    static constexpr size_t kLanes = 4;
    static T load(const void* p) { return _mm256_loadu_si256(static_cast<const T*>(p)); }
    static void store(void* p, T v) { _mm256_storeu_si256(static_cast<T*>(p), v); }
    static T added(T sum, T data, T key) {
        const T value = _mm256_xor_si256(data, key);
        const T product = _mm256_mul_epu32(value, _mm256_srli_epi64(value, 32));
        return _mm256_add_epi64(sum, _mm256_add_epi64(product, _mm256_shuffle_epi32(data, _MM_SHUFFLE(1, 0, 3, 2))));
    }
    static T scrambled(T sum, T key) {
        const T value = _mm256_xor_si256(_mm256_xor_si256(sum, _mm256_srli_epi64(sum, 47)), key);
        const T prime = _mm256_set1_epi64x(0x9E3779B1);
        const T high = _mm256_mul_epu32(_mm256_srli_epi64(value, 32), prime);
        return _mm256_add_epi64(_mm256_mul_epu32(value, prime), _mm256_slli_epi64(high, 32));
    }
};

}  // namespace

void kvl::xxh3_blocks_avx2(uint64_t* accumulators, const char* data, size_t blocks) {
    add_blocks<Four>(accumulators, data, blocks);
}

KVL_TARGET_END
#endif
