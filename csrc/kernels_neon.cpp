// Kernels for Arm CPUs of 64 bits, which all have NEON: vectors of 16 bytes. They have run emulated only, never on real
// Arm hardware, and nothing is known of their speed.
#if defined(__AARCH64EL__)
#include <arm_neon.h>

#include <cstdint>

#include "kernels.h"
#include "simd_neon.h"

#include "simd_pairs.h"
#include "simd_rows.h"
#include "simd_transpose.h"

namespace kvl {
const Kernels kNeon = {"neon",
                       rows<V16, false>,
                       rows<V16, false>,
                       placed_rows<V16, false>,
                       placed_rows<V16, false>,
                       {transpose<V16, 1>, transpose<V16, 2>, transpose<V16, 4>, transpose<V16, 8>, transpose<V16, 16>},
                       {zip<1>, zip<2>, zip<4>},
                       {unzip<1>, unzip<2>, unzip<4>},
                       [] {}};
}  // namespace kvl
#endif
