// The C ABI of kvlingua's kernels: plain C types only, no torch, no Python.
//
// One call copies a whole plan: all planes and layers of a run of tokens, from one memory layout to another. A plane is
// described by base addresses and byte strides, so that a layout is numbers, never a name. The library owns nothing
// and keeps nothing after a call; calls may run at the same time from several threads.
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

// What a call returns; 0 is success, and then everything was copied. Otherwise nothing was written.
enum {
    KVL_OK = 0,
    KVL_NULL = 1,         // a pointer is null
    KVL_SIZE = 2,         // a count or size is out of range
    KVL_STRIDE = 3,       // a stride is negative, no multiple of the item size, or leads out of the address space
    KVL_TABLE = 4,        // a block table is shorter than its tokens need, or names a block that doesn't exist
    KVL_MEMORY = 5,       // no memory for the library's own small tables
    KVL_UNSUPPORTED = 6,  // this CPU lacks the kernels that were asked for
};
// What a return code means, in one sentence. Never null.
KVL_API const char* kvl_message(int32_t code);

// Kernels to use: the best this CPU has (the normal case), or certain ones (for tests and measurements).
enum { KVL_BEST = 0, KVL_PORTABLE = 1, KVL_AVX2 = 2, KVL_AVX512 = 3 };
// Name of what KVL_BEST means on this CPU.
KVL_API const char* kvl_kernels(void);

// Where a sequence's tokens are on one side: token t of the plan is at position p = start + t, in block
// table[p / page] at offset p % page.
typedef struct kvl_tokens {
    const int64_t* table;
    int64_t entries;  // length of table
    int64_t blocks;   // blocks that exist: entries are in [0, blocks)
    int64_t page;     // tokens per block
    int64_t start;
} kvl_tokens;

// One side of a plane: element [layer, block, head, token, dim] is at base[layer] plus index times stride (bytes).
// Head 0 is the first head to be copied.
typedef struct kvl_side {
    const uint64_t* base;  // one address per layer, multiples of the item size
    int64_t block, head, token, dim;
} kvl_side;

typedef struct kvl_plane {
    int64_t width;  // elements along dim
    kvl_side source, target;
} kvl_plane;

// The caller guarantees that everything the plan reaches is readable or writable memory, that source and target don't
// overlap, and that no two elements of the target share an address.
typedef struct kvl_plan {
    int32_t itemsize;      // bytes per element: 2 or 4
    int32_t threads;       // the most to use, from 1 to 1024
    int32_t kernels;       // KVL_BEST
    int32_t reserved;      // 0
    int64_t stream_bytes;  // copies of at least this size bypass the cache when they write; 0: the library's choice
    int64_t tokens, heads, layers, planes;
    const kvl_plane* plane;
    kvl_tokens source, target;
} kvl_plan;

KVL_API int32_t kvl_convert(const kvl_plan* plan);

#endif  // KVLINGUA_H_
