// The kernels alone, without what launches them: for compilers that are asked for device code only, to be checked, or
// to be loaded where a library lacks an architecture.
#include "kernel.h"

template __global__ void kvl::convert_kernel<kvl::kSmallWords>(KVL_ARGUMENT kvl::Work<kvl::kSmallWords>);

#if defined(KVL_JUST_IN_TIME)
// By a name that a loader can ask for (layouts/just_in_time.py).
extern "C" KVL_KERNEL kvl_built_kernel(KVL_ARGUMENT kvl::Work<kvl::kSmallWords> work) {
    KVL_SHARED kvl::Scratch scratch;
    const kvl::Work<kvl::kSmallWords>& there = kvl::in_place(work);
    kvl::run_block(there.head, there.words, &scratch);
}
#endif
