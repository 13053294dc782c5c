// Between the fuzz target and the driver that runs it where there is no libFuzzer.
#ifndef KVLINGUA_TESTS_FUZZ_H_
#define KVLINGUA_TESTS_FUZZ_H_

#include <cstddef>
#include <cstdint>

struct Verdict {
    int32_t code;     // of the library; -1: it wasn't called
    int32_t kernels;  // that were asked for
    bool must_refuse;
};

const Verdict& last_verdict();

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

#endif  // KVLINGUA_TESTS_FUZZ_H_
