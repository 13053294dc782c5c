// The inner loops of casts, one set per instruction set.
#ifndef KVLINGUA_CAST_KERNELS_H_
#define KVLINGUA_CAST_KERNELS_H_

#include <cstdint>

#include "kernels.h"

namespace kvl {

// Rows of `size` numbers, dense within a row, in two loops; counts and steps in bytes, the outer loop first. Rows are
// counted through both.
struct CastRows {
    char* target;
    const char* source;
    int64_t size;
    int64_t count[2], target_step[2], source_step[2];
    // Row r's numbers are multiplied by factor[0][r], [1][r] and [2][r], each product rounded to fp32; only by the
    // first if `one`. A factor_step of 0 instead of 1: the same for all rows.
    const float* factor[3];
    bool one;
    bool bounded;  // no product is NaN or rounded to more than the largest number of the target's type
    int64_t factor_step;
    int64_t ahead;  // what lies so far from each row's source is fetched into the cache
    bool stream;    // whole lines of the target are written past the cache, where the CPU can
};

constexpr int kCastTypes = 6;  // KVL_F32 to KVL_E5M2

struct CastKernels {
    // By source and target type (less 1).
    void (*cast[kCastTypes][kCastTypes])(const CastRows& rows);
    // By source type: the largest magnitude of each row's numbers; infinity if one is infinite or NaN.
    void (*largest[kCastTypes])(const CastRows& rows, float* largest);
    bool prefetchw;  // whether the CPUs that run these know that instruction; the first x86-64 didn't
};

extern const CastKernels kCastPortable;
#if defined(__x86_64__)
extern const CastKernels kCastAvx2;
extern const CastKernels kCastAvx512;
#elif defined(__AARCH64EL__)
extern const CastKernels kCastNeon;
#endif

// Those that go with kernels for copies.
const CastKernels& find_cast_kernels(const Kernels& kernels);

}  // namespace kvl

#endif  // KVLINGUA_CAST_KERNELS_H_
