// What is fuzzed: the kernels for CPUs, or those for GPUs by their host twin.
#ifndef KVLINGUA_TESTS_CALL_H_
#define KVLINGUA_TESTS_CALL_H_

#include <cstdint>

#include "kvlingua.h"

int32_t call_library(const kvl_plan& plan);

#endif  // KVLINGUA_TESTS_CALL_H_
