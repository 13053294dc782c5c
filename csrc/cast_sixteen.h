// The largest of the integers T in 16 bytes, which wider vectors come down to. To be included inside a KVL_TARGET
// region that has AVX2.
#ifndef KVLINGUA_CAST_SIXTEEN_H_
#define KVLINGUA_CAST_SIXTEEN_H_

namespace {

template <typename T>
inline __m128i most_of_16(__m128i a, __m128i b) {
    return sizeof(T) == 1 ? _mm_max_epu8(a, b) : sizeof(T) == 2 ? _mm_max_epu16(a, b) : _mm_max_epu32(a, b);
}

template <typename T>
inline uint32_t greatest_of_16(__m128i x) {
    x = most_of_16<T>(x, _mm_srli_si128(x, 8));
    x = most_of_16<T>(x, _mm_srli_si128(x, 4));
    if (sizeof(T) <= 2) x = most_of_16<T>(x, _mm_srli_si128(x, 2));
    if (sizeof(T) == 1) x = most_of_16<T>(x, _mm_srli_si128(x, 1));
    return static_cast<T>(_mm_cvtsi128_si32(x));
}

}  // namespace

#endif  // KVLINGUA_CAST_SIXTEEN_H_
