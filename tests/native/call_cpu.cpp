#include "call.h"
#include "kernels_here.h"

int32_t call_library(const kvl_plan& plan) { return kvl_convert(&plan); }

std::vector<int32_t> kernels_here() {
    std::vector<int32_t> found;
    char digits[32];
    for (int32_t kernels = KVL_PORTABLE; kernels <= KVL_NEON; ++kernels)
        if (kvl_checksum(kernels, nullptr, nullptr, 0, digits) == KVL_OK) found.push_back(kernels);
    return found;
}
