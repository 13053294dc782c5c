// Numbers of any type, one or eight at a time: the formulas of cast_formats.h, chosen at run time.
#ifndef KVLINGUA_CUDA_NUMBERS_H_
#define KVLINGUA_CUDA_NUMBERS_H_

#include "../cast_formats.h"
#include "../cast_scalar.h"
#include "../kvlingua.h"
#include "platform.h"

namespace kvl {

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

// What C++'s <type_traits> has, too, but hiprtc doesn't have that.
template <class A, class B>
constexpr bool kSame = false;
template <class A>
constexpr bool kSame<A, A> = true;
template <size_t kBytes>
struct Access {
    using Type = Bytes16;
};
template <>
struct Access<1> {
    using Type = Bytes8;
};

// Accesses to `kCount` codes of T side by side, 1 or 8.
template <class T, uint32_t kCount>
struct Codes {
    using Vector = typename Access<sizeof(T)>::Type;
    static constexpr uint32_t kBits = 8 * sizeof(T), kEach = 32 / kBits, kWords = kCount / kEach;
    static constexpr uint32_t kVectorWords = sizeof(Vector) / sizeof(uint32_t);

    // Each code in the upper bits.
    KVL_DEVICE static void load(uint64_t address, uint32_t* code) {
        if constexpr (kCount == 1) {
            *code = static_cast<uint32_t>(kvl::load<T>(address)) << (32 - kBits);
        } else {
            uint32_t word[kWords];
            KVL_UNROLL
            for (uint32_t i = 0; i < kWords; i += kVectorWords) {
                const auto some = kvl::load<Vector>(address + i * sizeof(uint32_t));
                for (uint32_t j = 0; j < kVectorWords; ++j) word[i + j] = some.word[j];
            }
            KVL_UNROLL
            for (uint32_t i = 0; i < kCount; ++i) code[i] = word[i / kEach] >> kBits * (i % kEach) << (32 - kBits);
        }
    }

    // Each code in the lower bits.
    KVL_DEVICE static void store(uint64_t address, const uint32_t* code) {
        if constexpr (kCount == 1) {
            kvl::store(address, static_cast<T>(*code));
        } else {
            uint32_t word[kWords] = {};
            KVL_UNROLL
            for (uint32_t i = 0; i < kCount; ++i) word[i / kEach] |= code[i] << kBits * (i % kEach);
            KVL_UNROLL
            for (uint32_t i = 0; i < kWords; i += kVectorWords) {
                Vector some;
                for (uint32_t j = 0; j < kVectorWords; ++j) some.word[j] = word[i + j];
                kvl::store(address + i * sizeof(uint32_t), some);
            }
        }
    }
};

// Calls f with the format of a KVL_* type.
template <class F>
KVL_DEVICE void with_format(int32_t type, const F& f) {
    switch (type) {
        case KVL_F32:
            return f(F32());
        case KVL_F16:
            return f(F16());
        case KVL_BF16:
            return f(Bf16());
        case KVL_E4M3FN:
            return f(E4m3fn());
        case KVL_E4M3FNUZ:
            return f(E4m3fnuz());
        default:
            return f(E5m2());
    }
}

// Numbers of a type, from an address that is a multiple of what they take, up to 16 bytes; as the bits of fp32.
template <uint32_t kCount>
KVL_DEVICE void decode(int32_t type, uint64_t address, uint32_t* x) {
    with_format(type, [&](auto format) {
        using F = decltype(format);
        Codes<typename F::T, kCount>::load(address, x);
        KVL_UNROLL
        for (uint32_t i = 0; i < kCount; ++i) x[i] = F::template decode<Scalar>(x[i]);
    });
}

template <class F>
KVL_DEVICE uint32_t encode_one(uint32_t x) {
    if constexpr (F::kPacked)
        return Scalar::finish<F>(F::template units<Scalar>(x), x);
    else
        return F::template encode<Scalar>(x);
}

#if defined(KVL_FP8_INSTRUCTIONS)
// The formulas take so many operations that these, and not memory, would set the pace. The instructions give the same
// codes, as far as NVIDIA's own software for them says: it was compared for every number of fp32.
template <class F>
constexpr bool kInstructed = kSame<F, E4m3fn> || kSame<F, E5m2>;

template <class F>
KVL_DEVICE void encode_two(const uint32_t* x, uint32_t* code) {
    uint16_t both;
    if constexpr (kSame<F, E4m3fn>)
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(both) : "f"(as_number(x[1])), "f"(as_number(x[0])));
    else
        asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(both) : "f"(as_number(x[1])), "f"(as_number(x[0])));
    code[0] = both & 0xff;
    code[1] = both >> 8;
}
#else
template <class F>
constexpr bool kInstructed = false;
template <class F>
KVL_DEVICE void encode_two(const uint32_t*, uint32_t*) {}
#endif

template <uint32_t kCount>
KVL_DEVICE void encode(int32_t type, uint64_t address, const uint32_t* x) {
    with_format(type, [&](auto format) {
        using F = decltype(format);
        uint32_t code[kCount];
        if constexpr (kInstructed<F> && kCount > 1) {
            KVL_UNROLL
            for (uint32_t i = 0; i < kCount; i += 2) encode_two<F>(x + i, code + i);
        } else {
            KVL_UNROLL
            for (uint32_t i = 0; i < kCount; ++i) code[i] = encode_one<F>(x[i]);
        }
        Codes<typename F::T, kCount>::store(address, code);
    });
}

// The largest number of an fp8 type.
KVL_DEVICE float largest_of_type(int32_t type) {
    return type == KVL_E4M3FN ? 448.0f : type == KVL_E4M3FNUZ ? 240.0f : 57344.0f;
}

}  // namespace kvl

#endif  // KVLINGUA_CUDA_NUMBERS_H_
