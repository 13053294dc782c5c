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

// The largest of the 2-byte integers in each of eight vectors V, whose lanes of 16 bytes `fold` brings down to one.
// Each step interleaves two vectors and keeps the larger halves, so that in the end a word is left of each.
template <class V, class Fold>
inline void greatest_of_eight(const typename V::U* a, const Fold& fold, uint32_t* out) {
    using U = typename V::U;
    U b[4], c[2];
    for (int i = 0; i < 4; ++i) b[i] = V::template folded<2>(a[i], a[i + 4]);
    for (int i = 0; i < 2; ++i) c[i] = V::template folded<4>(b[i], b[i + 2]);
    const __m128i words = fold(V::template folded<8>(c[0], c[1]));
    uint16_t codes[8];  // of vectors 0, 4, 2, 6, 1, 5, 3, 7
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), words);
    for (int i = 0; i < 8; ++i) out[i] = codes[(i & 1) << 2 | (i & 2) | i >> 2];
}

}  // namespace

#endif  // KVLINGUA_CAST_SIXTEEN_H_
