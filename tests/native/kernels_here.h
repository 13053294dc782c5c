// The kernels that this CPU has.
#ifndef KVLINGUA_TESTS_KERNELS_HERE_H_
#define KVLINGUA_TESTS_KERNELS_HERE_H_

#include <cstdint>
#include <vector>

#include "kvlingua.h"

// Their KVL_* numbers, KVL_BEST apart.
inline std::vector<int32_t> kernels_here() {
    std::vector<int32_t> found;
    char digits[32];
    for (int32_t kernels = KVL_PORTABLE; kernels <= KVL_NEON; ++kernels)
        if (kvl_checksum(kernels, nullptr, nullptr, 0, digits) == KVL_OK) found.push_back(kernels);
    return found;
}

#endif  // KVLINGUA_TESTS_KERNELS_HERE_H_
