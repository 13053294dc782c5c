// XXH3's long loop for Arm CPUs of 64 bits, which all have NEON: the eight accumulators are four vectors. It has run
// emulated only, never on real Arm hardware.
#if defined(__AARCH64EL__)
#include <arm_neon.h>

#include "xxh3.h"
#include "xxh3_blocks.h"

namespace {

struct Two {
    using T = uint64x2_t;
    static constexpr size_t kLanes = 2;
    static T load(const void* p) { return vreinterpretq_u64_u8(vld1q_u8(static_cast<const uint8_t*>(p))); }
    static void store(uint64_t* p, T v) { vst1q_u64(p, v); }
    static T added(T sum, T data, T key) {
        const T value = veorq_u64(data, key);
        return vaddq_u64(vmlal_u32(sum, vmovn_u64(value), vshrn_n_u64(value, 32)), vextq_u64(data, data, 1));
    }
    static T scrambled(T sum, T key) {
        const T value = veorq_u64(veorq_u64(sum, vshrq_n_u64(sum, 47)), key);
        const uint32x2_t prime = vdup_n_u32(0x9E3779B1);
        const T high = vshlq_n_u64(vmull_u32(vshrn_n_u64(value, 32), prime), 32);
        return vmlal_u32(high, vmovn_u64(value), prime);
    }
};

}  // namespace

void kvl::xxh3_blocks_neon(uint64_t* accumulators, const char* data, size_t blocks) {
    add_blocks<Two>(accumulators, data, blocks);
}
#endif
