// The kernels that there are.
#ifndef KVLINGUA_TESTS_KERNELS_HERE_H_
#define KVLINGUA_TESTS_KERNELS_HERE_H_

#include <cstdint>
#include <vector>

// Numbers that a plan may name, KVL_BEST apart: those of this CPU. None: the library doesn't look at them.
std::vector<int32_t> kernels_here();

#endif  // KVLINGUA_TESTS_KERNELS_HERE_H_
