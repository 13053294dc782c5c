// The C ABI of kvlingua's kernels: plain C types only, no torch, no Python.
#ifndef KVLINGUA_H_
#define KVLINGUA_H_

#include <stdint.h>

#if defined(__cplusplus)
#define KVL_API extern "C" __attribute__((visibility("default")))
#else
#define KVL_API
#endif

// Version of this header that the library was built with; a caller refuses any other than its own.
#define KVL_ABI_VERSION 1
KVL_API int32_t kvl_abi_version(void);

#endif  // KVLINGUA_H_
