// Casts for x86 CPUs with AVX2: 8 numbers at a time.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cast_kernels.h"
#include "target.h"

KVL_TARGET_BEGIN("avx2")
#include "cast_rows.h"
#include "cast_sixteen.h"

namespace {

struct Eight {
    using U = __m256i;
    static constexpr int64_t kLanes = 8, kGroup = 4;
    static constexpr bool kBounds = true;
    static U all(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
    static U each(const float* p) { return _mm256_castps_si256(_mm256_broadcast_ss(p)); }
    static U bit_and(U a, U b) { return _mm256_and_si256(a, b); }
    static U bit_or(U a, U b) { return _mm256_or_si256(a, b); }
    static U add(U a, U b) { return _mm256_add_epi32(a, b); }
    static U sub(U a, U b) { return _mm256_sub_epi32(a, b); }
    static U min(U a, U b) { return _mm256_min_epi32(a, b); }
    static U max(U a, U b) { return _mm256_max_epi32(a, b); }
    template <int n>
    static U right(U a) {
        return _mm256_srli_epi32(a, n);
    }
    static U if_greater(U a, U b, U yes, U no) { return _mm256_blendv_epi8(no, yes, _mm256_cmpgt_epi32(a, b)); }
    static U if_equal(U a, U b, U yes, U no) { return _mm256_blendv_epi8(no, yes, _mm256_cmpeq_epi32(a, b)); }
    static U if_nan(U x, U yes, U no) {
        const __m256 nan = _mm256_cmp_ps(number(x), number(x), _CMP_UNORD_Q);
        return _mm256_castps_si256(_mm256_blendv_ps(number(no), number(yes), nan));
    }
    static U add_f(U a, U b) { return _mm256_castps_si256(_mm256_add_ps(number(a), number(b))); }
    static U sub_f(U a, U b) { return _mm256_castps_si256(_mm256_sub_ps(number(a), number(b))); }
    static U mul_f(U a, U b) { return _mm256_castps_si256(_mm256_mul_ps(number(a), number(b))); }
    template <typename T>
    static U most(U a, U b) {
        return sizeof(T) == 1   ? _mm256_max_epu8(a, b)
               : sizeof(T) == 2 ? _mm256_max_epu16(a, b)
                                : _mm256_max_epu32(a, b);
    }
    template <typename T>
    static uint32_t greatest(U a) {
        return greatest_of_16<T>(most_of_16<T>(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1)));
    }
    template <typename T>
    static constexpr int64_t kTogether = sizeof(T) == 2 ? 8 : 1;
    template <typename T>
    static void greatest_of_each(const U* a, uint32_t* out) {
        if constexpr (sizeof(T) == 2)
            greatest_of_eight<Eight>(a, fold, out);
        else
            *out = greatest<T>(*a);
    }
    // The larger of the 2-byte integers that lie beside each other once units of two vectors are interleaved.
    template <int kUnit>
    static U folded(U a, U b) {
        if constexpr (kUnit == 2) return _mm256_max_epu16(_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
        if constexpr (kUnit == 4) return _mm256_max_epu16(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        if constexpr (kUnit == 8) return _mm256_max_epu16(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    }
    // Numbers are spread and packed within lanes of 16 bytes, so that their order comes back by itself, but for bytes.
    template <typename T>
    static void load(const char* p, U* x) {
        const U zero = all(0);
        if (sizeof(T) == 1) {
            const U bytes = _mm256_permute4x64_epi64(at(p), 0xd8);
            const U words[] = {_mm256_unpacklo_epi8(zero, bytes), _mm256_unpackhi_epi8(zero, bytes)};
            for (int i = 0; i < kGroup; i += 2) spread(words[i / 2], x + i);
        } else if (sizeof(T) == 2) {
            for (int i = 0; i < kGroup; i += 2) spread(at(p + 16 * i), x + i);
        } else {
            for (int i = 0; i < kGroup; i += 2) swap(at(p + 32 * i), at(p + 32 * i + 32), x + i);
        }
    }
    template <typename T>
    static void store(char* p, const U* codes, bool stream) {
        for (int i = 0; i < kGroup; i += 2) {
            if (sizeof(T) == 2) {
                put(stream, p + 16 * i, _mm256_packus_epi32(codes[i], codes[i + 1]));
            } else {
                U x[2];
                swap(codes[i], codes[i + 1], x);
                put(stream, p + 32 * i, x[0]);
                put(stream, p + 32 * i + 32, x[1]);
            }
        }
    }
    template <class F, bool kBounded>
    static void store_small(char* p, const U* units, const U* x, bool stream) {
        U words[2], signs[2];
        for (int i = 0; i < 2; ++i) {
            const U most = _mm256_packs_epi32(units[2 * i], units[2 * i + 1]);  // of NaN: 32767
            const U capped = kBounded ? most : _mm256_min_epi16(most, word(F::kFirst + F::kLargest));
            words[i] = _mm256_sub_epi16(capped, word(F::kFirst));
            const U nan = _mm256_subs_epu16(most, word(32767 - (F::kNanCode - F::kLargest)));
            if (!kBounded) words[i] = _mm256_add_epi16(words[i], nan);
            signs[i] = _mm256_packs_epi32(x[2 * i], x[2 * i + 1]);
        }
        const U codes = _mm256_packus_epi16(words[0], words[1]);
        U sign = _mm256_and_si256(_mm256_packs_epi16(signs[0], signs[1]), _mm256_set1_epi8(-128));
        if (!kBounded || F::kUnsigned != F::kNanCode)
            sign = _mm256_andnot_si256(_mm256_cmpeq_epi8(codes, _mm256_set1_epi8(F::kUnsigned)), sign);
        put(stream, p, _mm256_permute4x64_epi64(_mm256_or_si256(codes, sign), 0xd8));
    }

  private:
    static __m128i fold(U x) { return _mm_max_epu16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)); }
    static U at(const char* p) { return _mm256_loadu_si256(reinterpret_cast<const U*>(p)); }
    static U word(uint32_t x) { return _mm256_set1_epi16(static_cast<int16_t>(x)); }
    static void spread(U words, U* x) {
        x[0] = _mm256_unpacklo_epi16(all(0), words);
        x[1] = _mm256_unpackhi_epi16(all(0), words);
    }
    static void swap(U a, U b, U* x) {
        x[0] = _mm256_permute2x128_si256(a, b, 0x20);
        x[1] = _mm256_permute2x128_si256(a, b, 0x31);
    }
    static __m256 number(U u) { return _mm256_castsi256_ps(u); }
    static void put(bool stream, char* p, U u) {
        if (stream)
            _mm256_stream_si256(reinterpret_cast<U*>(p), u);
        else
            _mm256_storeu_si256(reinterpret_cast<U*>(p), u);
    }
};

}  // namespace
KVL_TARGET_END

namespace kvl {
const CastKernels kCastAvx2 = cast_kernels<Eight>(true);
}
#endif
