// Vectors of 16 bytes for Arm: NEON, which every aarch64 has. simd.h says what they do.
#ifndef KVLINGUA_SIMD_NEON_H_
#define KVLINGUA_SIMD_NEON_H_

namespace {

struct V16 {
    using T = uint8x16_t;
    using Half = V16;
    static constexpr int64_t kBytes = 16;
    // Past the cache there is only STNP, of two vectors at once and no more than a hint, which g++ gives for inline
    // assembly alone. Nobody has measured it here on real hardware, so everything is stored as usual.
    static constexpr bool kStreams = false;
    static T load(const char* p) { return vld1q_u8(reinterpret_cast<const uint8_t*>(p)); }
    static void store(char* p, T v) { vst1q_u8(reinterpret_cast<uint8_t*>(p), v); }
    static T gather(const char* p, int64_t) { return load(p); }
    template <int kUnit>
    static T lo(T a, T b) {
        if constexpr (kUnit == 1) return vzip1q_u8(a, b);
        if constexpr (kUnit == 2) return bytes(vzip1q_u16(by_2(a), by_2(b)));
        if constexpr (kUnit == 4) return bytes(vzip1q_u32(by_4(a), by_4(b)));
        if constexpr (kUnit == 8) return bytes(vzip1q_u64(by_8(a), by_8(b)));
    }
    template <int kUnit>
    static T hi(T a, T b) {
        if constexpr (kUnit == 1) return vzip2q_u8(a, b);
        if constexpr (kUnit == 2) return bytes(vzip2q_u16(by_2(a), by_2(b)));
        if constexpr (kUnit == 4) return bytes(vzip2q_u32(by_4(a), by_4(b)));
        if constexpr (kUnit == 8) return bytes(vzip2q_u64(by_8(a), by_8(b)));
    }
    template <int kUnit>
    static void part(T* a, T* b) {
        const T x = *a, y = *b;
        *a = even<kUnit>(x, y);
        *b = odd<kUnit>(x, y);
    }

  private:
    template <int kUnit>
    static T even(T a, T b) {
        if constexpr (kUnit == 1) return vuzp1q_u8(a, b);
        if constexpr (kUnit == 2) return bytes(vuzp1q_u16(by_2(a), by_2(b)));
        if constexpr (kUnit == 4) return bytes(vuzp1q_u32(by_4(a), by_4(b)));
    }
    template <int kUnit>
    static T odd(T a, T b) {
        if constexpr (kUnit == 1) return vuzp2q_u8(a, b);
        if constexpr (kUnit == 2) return bytes(vuzp2q_u16(by_2(a), by_2(b)));
        if constexpr (kUnit == 4) return bytes(vuzp2q_u32(by_4(a), by_4(b)));
    }
    static uint16x8_t by_2(T v) { return vreinterpretq_u16_u8(v); }
    static uint32x4_t by_4(T v) { return vreinterpretq_u32_u8(v); }
    static uint64x2_t by_8(T v) { return vreinterpretq_u64_u8(v); }
    static T bytes(uint16x8_t v) { return vreinterpretq_u8_u16(v); }
    static T bytes(uint32x4_t v) { return vreinterpretq_u8_u32(v); }
    static T bytes(uint64x2_t v) { return vreinterpretq_u8_u64(v); }
};

}  // namespace

#endif  // KVLINGUA_SIMD_NEON_H_
