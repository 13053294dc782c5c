// Kernels for x86 CPUs with AVX2: vectors of 32 bytes.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>

#include "kernels.h"
#include "target.h"

KVL_TARGET_BEGIN("avx2")
#include "simd_x86.h"

#include "simd_pairs.h"
#include "simd_rows.h"
#include "simd_transpose.h"

namespace {
void fence() { _mm_sfence(); }
}  // namespace
KVL_TARGET_END

namespace kvl {
const Kernels kAvx2 = {"avx2",
                       rows<V32, false>,
                       rows<V32, true>,
                       placed_rows<V32, false>,
                       placed_rows<V32, true>,
                       {transpose<V32, 1>, transpose<V32, 2>, transpose<V32, 4>, transpose<V32, 8>, transpose<V32, 16>},
                       {zip<1>, zip<2>, zip<4>},
                       {unzip<1>, unzip<2>, unzip<4>},
                       fence};
}  // namespace kvl
#endif
