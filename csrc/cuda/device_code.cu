// The kernels alone, without what launches them: for compilers that are asked for device code only, to be checked, or
// to be loaded where a library lacks an architecture.
#include "kernel.h"

template __global__ void kvl::convert_kernel<kvl::kSmallWords>(KVL_ARGUMENT kvl::Work<kvl::kSmallWords>);
