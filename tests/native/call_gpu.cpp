#include "call.h"
#include "kernels_here.h"
#include "kvlingua_gpu.h"

// Grid blocks of any size; what scales come to is a return code, as it is for CPUs.
int32_t call_library(const kvl_plan& plan) {
    static uint32_t verdict;
    verdict = 0;
    const int32_t sizes[] = {0, 1, 5000, INT32_MAX};
    const int32_t size = sizes[static_cast<uint64_t>(plan.tokens) % 4];
    const kvl_gpu_call call = {
        &plan, nullptr, reinterpret_cast<uint64_t>(&verdict), 0, size, 1, 0, plan.tokens % 3 ? 0 : 64};
    const int32_t code = kvl_gpu_convert(&call);
    return code ? code : static_cast<int32_t>(verdict);
}

std::vector<int32_t> kernels_here() { return {}; }
