// Casts for x86 CPUs with AVX-512 F and BW: 16 numbers at a time.
#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's own header initialises a vector with itself to leave it undefined, and then warns of it.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cast_kernels.h"
#include "target.h"

KVL_TARGET_BEGIN("avx2,avx512f,avx512bw")
#include "cast_rows.h"
#include "cast_sixteen.h"

namespace {

struct Sixteen {
    using U = __m512i;
    static constexpr int64_t kLanes = 16, kGroup = 4;
    static constexpr bool kBounds = true;
    static U all(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
    static U each(const float* p) { return _mm512_castps_si512(_mm512_set1_ps(*p)); }
    static U bit_and(U a, U b) { return _mm512_and_si512(a, b); }
    static U bit_or(U a, U b) { return _mm512_or_si512(a, b); }
    static U add(U a, U b) { return _mm512_add_epi32(a, b); }
    static U sub(U a, U b) { return _mm512_sub_epi32(a, b); }
    static U min(U a, U b) { return _mm512_min_epi32(a, b); }
    static U max(U a, U b) { return _mm512_max_epi32(a, b); }
    template <int n>
    static U right(U a) {
        return _mm512_srli_epi32(a, n);
    }
    static U if_greater(U a, U b, U yes, U no) { return _mm512_mask_mov_epi32(no, _mm512_cmpgt_epi32_mask(a, b), yes); }
    static U if_equal(U a, U b, U yes, U no) { return _mm512_mask_mov_epi32(no, _mm512_cmpeq_epi32_mask(a, b), yes); }
    static U if_nan(U x, U yes, U no) {
        return _mm512_mask_mov_epi32(no, _mm512_cmp_ps_mask(number(x), number(x), _CMP_UNORD_Q), yes);
    }
    static U add_f(U a, U b) { return _mm512_castps_si512(_mm512_add_ps(number(a), number(b))); }
    static U sub_f(U a, U b) { return _mm512_castps_si512(_mm512_sub_ps(number(a), number(b))); }
    static U mul_f(U a, U b) { return _mm512_castps_si512(_mm512_mul_ps(number(a), number(b))); }
    template <typename T>
    static U most(U a, U b) {
        return sizeof(T) == 1   ? _mm512_max_epu8(a, b)
               : sizeof(T) == 2 ? _mm512_max_epu16(a, b)
                                : _mm512_max_epu32(a, b);
    }
    template <typename T>
    static uint32_t greatest(U a) {
        const __m128i low = most_of_16<T>(_mm512_castsi512_si128(a), _mm512_extracti32x4_epi32(a, 1));
        const __m128i high = most_of_16<T>(_mm512_extracti32x4_epi32(a, 2), _mm512_extracti32x4_epi32(a, 3));
        return greatest_of_16<T>(most_of_16<T>(low, high));
    }
    template <typename T>
    static constexpr int64_t kTogether = sizeof(T) == 2 ? 8 : 1;
    template <typename T>
    static void greatest_of_each(const U* a, uint32_t* out) {
        if constexpr (sizeof(T) == 2)
            greatest_of_eight<Sixteen>(a, fold, out);
        else
            *out = greatest<T>(*a);
    }
    // The larger of the 2-byte integers that lie beside each other once units of two vectors are interleaved.
    template <int kUnit>
    static U folded(U a, U b) {
        if constexpr (kUnit == 2) return _mm512_max_epu16(_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b));
        if constexpr (kUnit == 4) return _mm512_max_epu16(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        if constexpr (kUnit == 8) return _mm512_max_epu16(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    }
    // Numbers are spread and packed within lanes of 16 bytes, so that their order comes back by itself, but for bytes.
    template <typename T>
    static void load(const char* p, U* x) {
        const U zero = all(0);
        if (sizeof(T) == 1) {
            const U bytes = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), at(p));
            const U words[] = {_mm512_unpacklo_epi8(zero, bytes), _mm512_unpackhi_epi8(zero, bytes)};
            for (int i = 0; i < kGroup; i += 2) spread(words[i / 2], x + i);
        } else if (sizeof(T) == 2) {
            for (int i = 0; i < kGroup; i += 2) spread(at(p + 32 * i), x + i);
        } else {
            for (int i = 0; i < kGroup; i += 2) {
                const U a = at(p + 64 * i), b = at(p + 64 * i + 64);
                x[i] = _mm512_shuffle_i32x4(a, b, 0x88);
                x[i + 1] = _mm512_shuffle_i32x4(a, b, 0xdd);
            }
        }
    }
    template <typename T>
    static void store(char* p, const U* codes, bool stream) {
        for (int i = 0; i < kGroup; i += 2) {
            const U a = codes[i], b = codes[i + 1];
            if (sizeof(T) == 2) {
                put(stream, p + 32 * i, _mm512_packus_epi32(a, b));
            } else {
                put(stream, p + 64 * i, _mm512_permutex2var_epi64(a, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), b));
                put(stream, p + 64 * i + 64,
                    _mm512_permutex2var_epi64(a, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), b));
            }
        }
    }
    template <class F, bool kBounded>
    static void store_small(char* p, const U* units, const U* x, bool stream) {
        U words[2], signs[2];
        for (int i = 0; i < 2; ++i) {
            const U most = _mm512_packs_epi32(units[2 * i], units[2 * i + 1]);  // of NaN: 32767
            const U capped = kBounded ? most : _mm512_min_epi16(most, word(F::kFirst + F::kLargest));
            words[i] = _mm512_sub_epi16(capped, word(F::kFirst));
            const U nan = _mm512_subs_epu16(most, word(32767 - (F::kNanCode - F::kLargest)));
            if (!kBounded) words[i] = _mm512_add_epi16(words[i], nan);
            signs[i] = _mm512_packs_epi32(x[2 * i], x[2 * i + 1]);
        }
        const U codes = _mm512_packus_epi16(words[0], words[1]);
        U sign = _mm512_packs_epi16(signs[0], signs[1]);
        if (!kBounded || F::kUnsigned != F::kNanCode)
            sign = _mm512_maskz_mov_epi8(_mm512_cmpneq_epi8_mask(codes, _mm512_set1_epi8(F::kUnsigned)), sign);
        const U signed_codes = _mm512_or_si512(codes, _mm512_and_si512(sign, _mm512_set1_epi8(-128)));
        put(stream, p, _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), signed_codes));
    }

  private:
    static __m128i fold(U x) {
        const __m256i half = _mm256_max_epu16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
        return _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    }
    static U at(const char* p) { return _mm512_loadu_si512(p); }
    static U word(uint32_t x) { return _mm512_set1_epi16(static_cast<int16_t>(x)); }
    static void spread(U words, U* x) {
        x[0] = _mm512_unpacklo_epi16(all(0), words);
        x[1] = _mm512_unpackhi_epi16(all(0), words);
    }
    static __m512 number(U u) { return _mm512_castsi512_ps(u); }
    static void put(bool stream, char* p, U u) {
        if (stream)
            _mm512_stream_si512(reinterpret_cast<U*>(p), u);
        else
            _mm512_storeu_si512(p, u);
    }
};

}  // namespace
KVL_TARGET_END

namespace kvl {
const CastKernels kCastAvx512 = cast_kernels<Sixteen>(true);
}
#endif
