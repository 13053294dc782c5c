// Scales that are compared, and those that are common to a block.
#ifndef KVLINGUA_SCALES_H_
#define KVLINGUA_SCALES_H_

#include <cstdint>

#include "kernels.h"
#include "kvlingua.h"

namespace kvl {

// KVL_SCALES if, for tokens [first, last) of a checked plan, scales that KVL_COPY_EQUAL compares have different bits,
// or values of a plane with `once` that meet in one block of the target.
int32_t check_scales(const kvl_plan& plan, int64_t first, int64_t last);

// Converts the planes with `once`: a value for each block of the target that these tokens touch. Can't fail.
void convert_once(const kvl_plan& plan, const Kernels& kernels, int64_t first, int64_t last);

}  // namespace kvl

#endif  // KVLINGUA_SCALES_H_
