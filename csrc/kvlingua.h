// The C ABI of kvlingua's kernels: plain C types only, no torch, no Python.
//
// One call converts a whole plan: all planes and layers of a run of tokens, from one memory layout to another. A plane
// is described by base addresses and byte strides, so that a layout is numbers, never a name. Everything a plan says is
// checked against the memory it describes before anything is written. The library owns nothing and keeps nothing after
// a call; calls may run at the same time from several threads.
#ifndef KVLINGUA_H_
#define KVLINGUA_H_

#include <stdint.h>

#if defined(__cplusplus)
#define KVL_API extern "C" __attribute__((visibility("default")))
#else
#define KVL_API
#endif

// Version of this header that the library was built with; a caller refuses any other than its own.
#define KVL_ABI_VERSION 2
KVL_API int32_t kvl_abi_version(void);

// What a call returns; 0 is success, and then everything was converted. Otherwise nothing was written.
enum {
    KVL_OK = 0,
    KVL_NULL = 1,         // a pointer is null
    KVL_SIZE = 2,         // a count, size, type or operation is out of range
    KVL_STRIDE = 3,       // a stride or address is negative, no multiple of the item size, or out of the address space
    KVL_TABLE = 4,        // a block table is shorter than its tokens need, or names a block that doesn't exist
    KVL_MEMORY = 5,       // no memory for the library's own tables
    KVL_UNSUPPORTED = 6,  // this CPU lacks the kernels that were asked for
    KVL_SPAN = 7,         // a plane reaches outside the described memory
    KVL_TWICE = 8,        // the target's table names a block twice: later tokens would overwrite earlier ones
    KVL_OVERLAP = 9,      // what is read and what is written overlap
    KVL_SCALES = 10,      // scales that must be equal differ
};
// What a return code means, in one sentence. Never null.
KVL_API const char* kvl_message(int32_t code);

// Kernels to use: the best this CPU has (the normal case), or certain ones (for tests and measurements), which a CPU
// without them refuses: AVX2 and AVX-512 are x86's, NEON is 64-bit Arm's.
enum { KVL_BEST = 0, KVL_PORTABLE = 1, KVL_AVX2 = 2, KVL_AVX512 = 3, KVL_NEON = 4 };
// Name of what KVL_BEST means on this CPU.
KVL_API const char* kvl_kernels(void);

// Types of elements. Bytes are moved whatever they mean, and never cast.
enum { KVL_F32 = 1, KVL_F16 = 2, KVL_BF16 = 3, KVL_E4M3FN = 4, KVL_E4M3FNUZ = 5, KVL_E5M2 = 6, KVL_BYTE = 7 };

// What happens to a plane's elements.
enum {
    KVL_COPY = 0,        // bits are copied; both types have the same size
    KVL_COPY_EQUAL = 1,  // the same, once it is known that source_scale and target_scale are equal wherever they apply
    KVL_CAST = 2,        // fp32(x) * source_scale * factor / target_scale, rounded to the target's type
    KVL_QUANTISE = 3,    // cast with a scale per token and head that is computed from the numbers and written
};

// Addresses [begin, end) of memory.
typedef struct kvl_span {
    uint64_t begin, end;
} kvl_span;

// Where a sequence's tokens are on one side: token t of the plan is at position p = start + t, in block
// table[p / page] at offset p % page. A source may name a block more than once.
typedef struct kvl_view {
    const int64_t* table;
    int64_t entries;  // length of table
    int64_t blocks;   // blocks that exist: entries are in [0, blocks)
    int64_t page;     // tokens per block
    int64_t start;
    const kvl_span* span;  // this side's whole memory, ascending, none overlapping the next
    int64_t spans;
} kvl_view;

// A loop: `size` steps of so many bytes on each side.
typedef struct kvl_axis {
    int64_t size, source, target;
} kvl_axis;

// One side of a plane: element [layer, block, head, token, dims...] is at base[layer] plus index times stride, in
// bytes. Head 0 is the first head to be converted. Tokens may lie in tiles: token t of a block is at
// (t / tile_tokens) * tile + (t % tile_tokens) * token; without tiles (tile_tokens 0) at t * token.
typedef struct kvl_side {
    const uint64_t* base;  // one address per layer, multiples of the item size; null: a scale that isn't there
    int64_t block, head, token, tile_tokens, tile;
} kvl_side;

// The scales' sides hold one float32 where a token and head have their numbers; their dims have size 1. A scale that is
// common to several tokens, heads or blocks has stride 0 there. The target's scale is read, except by KVL_QUANTISE.
typedef struct kvl_plane {
    int32_t op, source_type, target_type;
    int32_t once;      // 1: a block has one value, not each token, copied when a block is touched; values that meet in
                       // one target block must be equal, else KVL_SCALES. For KVL_COPY and KVL_CAST.
    float factor;      // of KVL_CAST
    int32_t reserved;  // 0
    int64_t heads;     // the plan's, or 1 for a plane without heads
    int64_t dims;      // axes within a head's token: 1 to 4 of them in dim, in any order
    kvl_axis dim[4];
    kvl_side source, target, source_scale, target_scale;
} kvl_plane;

// Each plane's and layer's reach (all blocks, heads, a page's tokens, dims) lies inside one span of its side; the
// source's scales in the source's memory, the target's in the target's. What is written overlaps nothing that is read.
// The caller guarantees that the spans are readable or writable memory that nobody else writes, and that no two
// elements of the target share an address.
typedef struct kvl_plan {
    int32_t threads;  // the most to use, from 1 to 1024
    int32_t kernels;  // KVL_BEST
    int64_t
        stream_bytes;  // conversions of at least this size bypass the cache when they write; 0: the library's choice
    int64_t tokens, heads, layers, planes;
    const kvl_plane* plane;
    kvl_view source, target;
} kvl_plan;

KVL_API int32_t kvl_convert(const kvl_plan* plan);

// Stored objects in bulk (docs/format/container.md says what they are): files are read, verified and converted, or made
// and written, a batch in one call.

// A checksum in an object's header, and what it is of: runs [run, run + runs) of the form, one after the other.
typedef struct kvl_part {
    int64_t place;  // of its 32 hexadecimal digits in the header
    int64_t run, runs;
} kvl_part;

// The objects of one namespace and extent (docs/format/container.md). All are equal but for the fields.
typedef struct kvl_form {
    const char* header;  // with the digit 0 in all fields
    int64_t header_bytes, object_bytes, chunk_tokens;
    int64_t chain, first_token, header_checksum;  // where these fields begin in the header
    const kvl_span* field;                        // all fields, ascending and disjoint
    int64_t fields;
    const kvl_span* run;  // bytes of the object
    int64_t runs;
    const kvl_part* part;  // loading: the parts that are needed; storing: all there are
    int64_t parts;
} kvl_form;

// Lets a caller give up a load. All zero at first; must stay until the load has returned.
typedef struct kvl_gate {
    int32_t closed, writing;
} kvl_gate;
// After this the load writes nothing to any target any more. Waits for the conversions of objects that are being
// written, which touch memory only.
KVL_API void kvl_close_gate(kvl_gate* gate);

enum {
    KVL_DONE = 0,
    KVL_UNTRIED = 1,      // the gate was closed before its turn came
    KVL_SYSTEM = 2,       // opening, reading or writing failed: `error` is the errno
    KVL_FOREIGN = 3,      // no regular file that only this user can write
    KVL_OTHER_SIZE = 4,   // of another size, or it became shorter while it was read
    KVL_OTHER = 5,        // its header is another object's
    KVL_DAMAGED = 6,      // a checksum doesn't fit
    KVL_UNCONVERTED = 7,  // intact, but the conversion refused it: `error` is a code of kvl_convert
};

typedef struct kvl_stored {
    const char* name;   // of the file in the group's folder
    const char* chain;  // 64 hexadecimal digits
    int64_t block;      // in which entry of the plan's source table it stands
    int32_t status, error;
} kvl_stored;

// Objects of one form and the plan by which they are converted. The plan's source has one block, of chunk_tokens, which
// every entry of its table names; its addresses are those of an object that lies at the load's scratch memory.
typedef struct kvl_group {
    int32_t folder, reserved;  // a descriptor
    const kvl_form* form;
    const kvl_plan* plan;
    kvl_stored* object;
    int64_t objects;
} kvl_group;

typedef struct kvl_load {
    int32_t threads, kernels;
    char* scratch;  // a multiple of 64; room for one object, or for several threads that many
    int64_t scratch_bytes;
    kvl_gate* gate;
    const kvl_group* group;
    int64_t groups;
} kvl_load;

// Reads, verifies and converts each object. Fills in every status; once one isn't KVL_DONE the others are still
// verified, but no longer converted. No byte of an object reaches a target unless all that is read of it is verified.
// Anything else than KVL_OK: the arguments are wrong, and nothing was done.
KVL_API int32_t kvl_load_objects(const kvl_load* load);

typedef struct kvl_new {
    const char* name;              // a file of ours in `folder`, of the object's size
    const char* chain;             // 64 hexadecimal digits
    char* memory;                  // the object: its data are there, its header is written here too
    int64_t first_token, time_ns;  // the file gets this time of change
    int32_t folder, status, error, reserved;
} kvl_new;

typedef struct kvl_store {
    int32_t threads, kernels;
    const kvl_form* form;
    kvl_new* object;
    int64_t objects;
} kvl_store;

// Makes each object's checksums and header, and writes it to its file. After one that fails no further ones are begun.
KVL_API int32_t kvl_store_objects(const kvl_store* store);

// The XXH3-128 (seed 0) of runs of `data`, one after the other, as 32 hexadecimal digits without an end.
KVL_API int32_t kvl_checksum(int32_t kernels, const char* data, const kvl_span* run, int64_t runs, char* digits);

#endif  // KVLINGUA_H_
