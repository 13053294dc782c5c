// Casts for Arm CPUs of 64 bits, which all have NEON: 4 numbers at a time. They have run emulated only, never on real
// Arm hardware.
#if defined(__AARCH64EL__)
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "cast_kernels.h"
#include "cast_rows.h"

namespace {

struct Four {
    using U = uint32x4_t;
    static constexpr int64_t kLanes = 4, kGroup = 4;
    static constexpr bool kBounds = false;
    static U all(uint32_t x) { return vdupq_n_u32(x); }
    static U each(const float* p) { return bits(vld1q_dup_f32(p)); }
    static U bit_and(U a, U b) { return vandq_u32(a, b); }
    static U bit_or(U a, U b) { return vorrq_u32(a, b); }
    static U add(U a, U b) { return vaddq_u32(a, b); }
    static U sub(U a, U b) { return vsubq_u32(a, b); }
    static U min(U a, U b) { return vminq_u32(a, b); }
    static U max(U a, U b) { return vmaxq_u32(a, b); }
    template <int n>
    static U right(U a) {
        return vshrq_n_u32(a, n);
    }
    static U if_greater(U a, U b, U yes, U no) { return vbslq_u32(vcgtq_u32(a, b), yes, no); }
    static U if_equal(U a, U b, U yes, U no) { return vbslq_u32(vceqq_u32(a, b), yes, no); }
    static U if_nan(U x, U yes, U no) { return vbslq_u32(vceqq_f32(number(x), number(x)), no, yes); }
    static U add_f(U a, U b) { return bits(vaddq_f32(number(a), number(b))); }
    static U sub_f(U a, U b) { return bits(vsubq_f32(number(a), number(b))); }
    static U mul_f(U a, U b) { return bits(vmulq_f32(number(a), number(b))); }
    template <typename T>
    static U most(U a, U b) {
        if constexpr (sizeof(T) == 1) return vreinterpretq_u32_u8(vmaxq_u8(by_1(a), by_1(b)));
        if constexpr (sizeof(T) == 2) return vreinterpretq_u32_u16(vmaxq_u16(by_2(a), by_2(b)));
        if constexpr (sizeof(T) == 4) return vmaxq_u32(a, b);
    }
    template <typename T>
    static uint32_t greatest(U a) {
        if constexpr (sizeof(T) == 1) return vmaxvq_u8(by_1(a));
        if constexpr (sizeof(T) == 2) return vmaxvq_u16(by_2(a));
        if constexpr (sizeof(T) == 4) return vmaxvq_u32(a);
    }
    template <typename T>
    static constexpr int64_t kTogether = 1;
    template <typename T>
    static void greatest_of_each(const U* a, uint32_t* out) {
        *out = greatest<T>(*a);
    }
    template <typename T>
    static void load(const char* p, U* x) {
        if constexpr (sizeof(T) == 1) {
            const uint8x16_t zero = vdupq_n_u8(0);
            spread(vzip1q_u8(zero, at(p)), x);
            spread(vzip2q_u8(zero, at(p)), x + 2);
        } else if constexpr (sizeof(T) == 2) {
            for (int i = 0; i < kGroup; i += 2) spread(at(p + 8 * i), x + i);
        } else {
            for (int i = 0; i < kGroup; ++i) x[i] = vreinterpretq_u32_u8(at(p + 16 * i));
        }
    }
    // As usual, whatever `stream` says: simd_neon.h has the reason.
    template <typename T>
    static void store(char* p, const U* codes, bool) {
        if constexpr (sizeof(T) == 2) {
            for (int i = 0; i < kGroup; i += 2)
                put(p + 8 * i, vreinterpretq_u8_u16(vuzp1q_u16(by_2(codes[i]), by_2(codes[i + 1]))));
        } else {
            for (int i = 0; i < kGroup; ++i) put(p + 16 * i, by_1(codes[i]));
        }
    }
    template <class F, bool>
    static void store_small(char* p, const U* units, const U* x, bool) {
        uint16x8_t words[2], signs[2];
        for (int i = 0; i < 2; ++i) {
            const uint16x8_t most = vqmovn_high_u32(vqmovn_u32(units[2 * i]), units[2 * i + 1]);  // of NaN: 65535
            const uint16x8_t nan = vqsubq_u16(most, vdupq_n_u16(65535 - (F::kNanCode - F::kLargest)));
            words[i] = vsubq_u16(vminq_u16(most, vdupq_n_u16(F::kFirst + F::kLargest)), vdupq_n_u16(F::kFirst));
            words[i] = vaddq_u16(words[i], nan);
            signs[i] = vuzp2q_u16(by_2(x[2 * i]), by_2(x[2 * i + 1]));
        }
        const uint8x16_t codes = vuzp1q_u8(vreinterpretq_u8_u16(words[0]), vreinterpretq_u8_u16(words[1]));
        const uint8x16_t tops = vuzp2q_u8(vreinterpretq_u8_u16(signs[0]), vreinterpretq_u8_u16(signs[1]));
        const uint8x16_t no_sign = vceqq_u8(codes, vdupq_n_u8(F::kUnsigned));
        const uint8x16_t sign = vbicq_u8(vandq_u8(tops, vdupq_n_u8(0x80)), no_sign);
        put(p, vorrq_u8(codes, sign));
    }

  private:
    // By bytes, which may lie anywhere.
    static uint8x16_t at(const char* p) { return vld1q_u8(reinterpret_cast<const uint8_t*>(p)); }
    static void put(char* p, uint8x16_t v) { vst1q_u8(reinterpret_cast<uint8_t*>(p), v); }
    // Words, each to the upper half of a lane.
    static void spread(uint8x16_t bytes, U* x) {
        const uint16x8_t zero = vdupq_n_u16(0), words = vreinterpretq_u16_u8(bytes);
        x[0] = vreinterpretq_u32_u16(vzip1q_u16(zero, words));
        x[1] = vreinterpretq_u32_u16(vzip2q_u16(zero, words));
    }
    static uint8x16_t by_1(U u) { return vreinterpretq_u8_u32(u); }
    static uint16x8_t by_2(U u) { return vreinterpretq_u16_u32(u); }
    static float32x4_t number(U u) { return vreinterpretq_f32_u32(u); }
    static U bits(float32x4_t f) { return vreinterpretq_u32_f32(f); }
};

}  // namespace

namespace kvl {
const CastKernels kCastNeon = cast_kernels<Four>(false);
}
#endif
