// Casts for any CPU, and the choice among all kernels.
#include "cast_kernels.h"
#include "cast_rows.h"

namespace kvl {

const CastKernels kCastPortable = cast_kernels<Scalar>(false);

const CastKernels& find_cast_kernels(const Kernels& kernels) {
#if defined(__x86_64__)
    if (&kernels == &kAvx512) return kCastAvx512;
    if (&kernels == &kAvx2) return kCastAvx2;
#elif defined(__AARCH64EL__)
    if (&kernels == &kNeon) return kCastNeon;
#endif
    (void)kernels;
    return kCastPortable;
}

}  // namespace kvl
