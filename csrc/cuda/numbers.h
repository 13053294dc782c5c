// Numbers of any type, one or eight at a time: the formulas of cast_formats.h, chosen at run time.
#ifndef KVLINGUA_CUDA_NUMBERS_H_
#define KVLINGUA_CUDA_NUMBERS_H_

#include "../cast_formats.h"
#include "../cast_scalar.h"
#include "../kvlingua.h"
#include "platform.h"

namespace kvl {

// Codes side by side, as they lie in memory.
template <uint32_t kCount>
struct Codes {
    static constexpr uint32_t kWords = kCount == 1 ? 1 : kCount;  // room for those of four bytes
    uint32_t word[kWords];
};

// Code i, in the upper bits.
template <class T, uint32_t kCount>
KVL_DEVICE uint32_t upper(const Codes<kCount>& codes, uint32_t i) {
    constexpr uint32_t kBits = 8 * sizeof(T), kEach = 32 / kBits;
    return codes.word[i / kEach] >> kBits * (i % kEach) << (32 - kBits);
}

// The codes at an address, which is a multiple of what they take, up to 16 bytes.
template <class T, uint32_t kCount>
KVL_DEVICE Codes<kCount> load_codes(uint64_t address) {
    Codes<kCount> codes;
    if constexpr (kCount == 1) {
        codes.word[0] = load<T>(address);
    } else if constexpr (sizeof(T) == 1) {
        const Bytes8 all = load<Bytes8>(address);
        for (uint32_t i = 0; i < 2; ++i) codes.word[i] = all.word[i];
    } else {
        for (uint32_t i = 0; i < sizeof(T) / 2; ++i) {
            const Bytes16 some = load<Bytes16>(address + 16 * i);
            for (uint32_t j = 0; j < 4; ++j) codes.word[4 * i + j] = some.word[j];
        }
    }
    return codes;
}

template <class T, uint32_t kCount>
KVL_DEVICE void store_codes(uint64_t address, const uint32_t* code) {
    if constexpr (kCount == 1) {
        store(address, static_cast<T>(code[0]));
    } else {
        constexpr uint32_t kEach = 4 / sizeof(T);
        uint32_t word[kCount / kEach] = {};
        KVL_UNROLL
        for (uint32_t i = 0; i < kCount; ++i) word[i / kEach] |= code[i] << 8 * sizeof(T) * (i % kEach);
        if constexpr (sizeof(T) == 1)
            store(address, Bytes8{{word[0], word[1]}});
        else
            for (uint32_t i = 0; i < sizeof(T) / 2; ++i)
                store(address + 16 * i, Bytes16{{word[4 * i], word[4 * i + 1], word[4 * i + 2], word[4 * i + 3]}});
    }
}

template <class F, uint32_t kCount>
KVL_DEVICE void decode_as(uint64_t address, uint32_t* x) {
    const auto codes = load_codes<typename F::T, kCount>(address);
    KVL_UNROLL
    for (uint32_t i = 0; i < kCount; ++i) x[i] = F::template decode<Scalar>(upper<typename F::T>(codes, i));
}

template <class F, uint32_t kCount>
KVL_DEVICE void encode_as(uint64_t address, const uint32_t* x) {
    uint32_t code[kCount];
    KVL_UNROLL
    for (uint32_t i = 0; i < kCount; ++i) {
        if constexpr (F::kPacked)
            code[i] = Scalar::finish<F>(F::template units<Scalar>(x[i]), x[i]);
        else
            code[i] = F::template encode<Scalar>(x[i]);
    }
    store_codes<typename F::T, kCount>(address, code);
}

// Numbers of a KVL_* type, as the bits of fp32.
template <uint32_t kCount>
KVL_DEVICE void decode(int32_t type, uint64_t address, uint32_t* x) {
    switch (type) {
        case KVL_F32:
            return decode_as<F32, kCount>(address, x);
        case KVL_F16:
            return decode_as<F16, kCount>(address, x);
        case KVL_BF16:
            return decode_as<Bf16, kCount>(address, x);
        case KVL_E4M3FN:
            return decode_as<E4m3fn, kCount>(address, x);
        case KVL_E4M3FNUZ:
            return decode_as<E4m3fnuz, kCount>(address, x);
        default:
            return decode_as<E5m2, kCount>(address, x);
    }
}

template <uint32_t kCount>
KVL_DEVICE void encode(int32_t type, uint64_t address, const uint32_t* x) {
    switch (type) {
        case KVL_F32:
            return encode_as<F32, kCount>(address, x);
        case KVL_F16:
            return encode_as<F16, kCount>(address, x);
        case KVL_BF16:
            return encode_as<Bf16, kCount>(address, x);
        case KVL_E4M3FN:
            return encode_as<E4m3fn, kCount>(address, x);
        case KVL_E4M3FNUZ:
            return encode_as<E4m3fnuz, kCount>(address, x);
        default:
            return encode_as<E5m2, kCount>(address, x);
    }
}

// The largest number of an fp8 type.
KVL_DEVICE float largest_of_type(int32_t type) {
    return type == KVL_E4M3FN ? 448.0f : type == KVL_E4M3FNUZ ? 240.0f : 57344.0f;
}

KVL_DEVICE float as_number(uint32_t bits) {
    float number;
    __builtin_memcpy(&number, &bits, sizeof(number));
    return number;
}
KVL_DEVICE uint32_t as_bits(float number) {
    uint32_t bits;
    __builtin_memcpy(&bits, &number, sizeof(bits));
    return bits;
}

}  // namespace kvl

#endif  // KVLINGUA_CUDA_NUMBERS_H_
