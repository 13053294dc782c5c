// What a launch is told: a plan's integers, made small enough to be a kernel's argument.
//
// A kernel's argument is copied when it is launched. So nothing of ours has to outlive the call, no copy of tables goes
// ahead of the kernel, and a captured graph keeps all it needs.
#ifndef KVLINGUA_CUDA_WORK_H_
#define KVLINGUA_CUDA_WORK_H_

#include <cstdint>

#include "../kvlingua.h"
#include "divider.h"

namespace kvl {

constexpr uint32_t kMostTokens = 64;  // of a grid block
constexpr uint32_t kMostLoops = 6;    // tokens, heads, four of dims; what is contiguous takes the place of one
constexpr uint32_t kNone = ~0u;

enum Kind : uint32_t {
    kRows,         // what both sides have in one piece is copied
    kFromDims,     // transposed: the source has dims next to each other, the target tokens
    kToDims,       // the other way round
    kCast,         // KVL_CAST
    kQuantise,     // KVL_QUANTISE
    kEqualScales,  // scales are compared, nothing is written
    kEqualBlocks,  // values of blocks that meet in one block of the target are compared
};

// `size` steps of so many bytes on each side.
struct Loop {
    Divider size;
    uint64_t source = 0, target = 0;
};

// One side of a plane. The base of a layer is `base` plus words[list + layer], or without a list plus layer * step.
// Token t of a block is at t / tile_tokens * tile + t % tile_tokens * token.
struct Side {
    uint64_t base = 0, step = 0, block = 0, head = 0, token = 0, tile = 0;
    Divider tile_tokens;
    uint32_t list = kNone;
};

enum { kSource, kTarget, kSourceScale, kTargetScale, kSides };

// A plane, or what of it has the same kind of work. Its grid blocks do a layer and a group of tokens each; those of
// transposed planes a head and a part of the dims besides (a slice).
struct Part {
    Kind kind;
    uint32_t first_block;  // of the grid
    Divider groups, slices;
    uint32_t group;   // tokens of a group
    uint32_t skip;    // token t is the one at `t - skip`: groups begin where a target's or source's vectors do
    uint32_t tokens;  // or, of a plane with `once`, blocks of the target
    uint32_t once;
    uint32_t unit;  // bytes of an access; of transposed planes, what both sides have in one piece
    uint32_t loops, token_loop;
    uint32_t items;  // accesses of a whole group; of casts and comparisons, rows of a group
    Loop loop[kMostLoops];
    uint32_t sides;  // bits: which sides there are
    Side side[kSides];
    // Of transposed planes: dims of a slice, slices of a head, dims in all; how far dims are apart where tokens are
    // next to each other. Where dims are, `count` go into an access, and there are `per_row` along a slice, `last_row`
    // along a head's last one.
    uint32_t chunk;
    Divider chunks;
    uint32_t size;
    uint64_t dim_step;
    Divider per_row, last_row;
    // Of casts: loop[0] and [1] are tokens and heads, the others dims, counted `count` numbers at a time, `per_row` in
    // all. A pass does `rows` rows. To find the largest, `lanes` threads share a row.
    int32_t source_type, target_type;
    float factor;
    uint32_t count, rows;
    Divider lanes;
};

// The tokens of one side: token t is in block table[(first + t) / page], counted from the first that is needed.
struct Places {
    Divider page;
    uint32_t first = 0;
    uint32_t table = 0;  // where it begins, in half words
};

// `words` hold the parts, then lists of addresses, then both tables of 32-bit block numbers.
struct WorkHead {
    uint64_t verdict;  // where KVL_SCALES is written, or read: then nothing is done
    Places source, target;
    uint32_t parts;
    uint32_t judges;  // 1: this launch compares, and writes nothing but the verdict
};

template <uint32_t kWords>
struct Work {
    WorkHead head;
    uint64_t words[kWords];
};

constexpr uint32_t kPartWords = sizeof(Part) / sizeof(uint64_t);
static_assert(sizeof(Part) % sizeof(uint64_t) == 0 && sizeof(WorkHead) % sizeof(uint64_t) == 0);

// All of these compilers pass 4 KB of arguments; nvcc for all architectures of ours 32,764 bytes.
constexpr uint32_t kSmallWords = (4096 - 64 - sizeof(WorkHead)) / sizeof(uint64_t);
constexpr uint32_t kLargeWords = (32704 - sizeof(WorkHead)) / sizeof(uint64_t);

}  // namespace kvl

#endif  // KVLINGUA_CUDA_WORK_H_
