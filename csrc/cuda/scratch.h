// What the threads of a grid block share, and where a group's tokens are.
#ifndef KVLINGUA_CUDA_SCRATCH_H_
#define KVLINGUA_CUDA_SCRATCH_H_

#include "platform.h"
#include "work.h"

namespace kvl {

constexpr uint32_t kTileRow = 128, kTileRows = 64;  // bytes of a row, and rows, of what is transposed at a time
constexpr uint32_t kSlots = 2048;                   // partial maxima of rows that get a scale

// Tokens that are transposed at a time: the tile's rows, or what a row has room for.
KVL_ANYWHERE constexpr uint32_t tokens_of_tile(bool from_dims, uint32_t unit) {
    return from_dims || kTileRow / unit > kMostTokens ? kMostTokens : kTileRow / unit;
}
static_assert(kMostTokens <= kTileRows);

struct Scratch {
    uint64_t address[kSides][kMostTokens];  // of each token of the group; 0: there is no such token
    uint32_t joined[kMostTokens];           // of each vector of tokens: whether they lie one after the other
    union {
        alignas(16) uint8_t tile[kTileRows * kTileRow];
        uint32_t most[kSlots];
    };
    uint32_t factor[3][kThreads];  // of each row of a pass
};

// Calls f with an access of so many bytes, `kMost` or less.
template <uint32_t kMost, class F>
KVL_DEVICE void with_access(uint32_t bytes, const F& f) {
    switch (bytes) {
        case 1:
            return f(Bytes1());
        case 2:
            return f(Bytes2());
        case 4:
            return f(Bytes4());
        case 8:
            return f(Bytes8());
        default:
            if constexpr (kMost == 16) f(Bytes16());
    }
}

// A token of one side: which block it is in, and where in that.
KVL_DEVICE uint64_t token_address(const uint64_t* words, const Places& places, const Side& side, uint32_t layer,
                                  uint32_t token) {
    uint32_t offset = places.first + token;
    const uint32_t entry = places.page.divide_out(&offset);
    const uint64_t block = reinterpret_cast<const uint32_t*>(words)[places.table + entry];
    const uint32_t tile = side.tile_tokens.divide_out(&offset);
    const uint64_t base = side.base + (side.list == kNone ? layer * side.step : words[side.list + layer]);
    return base + block * side.block + tile * side.tile + offset * side.token;
}

// The first token that has its place in the target's block `block`, counted from the first block that is touched.
KVL_DEVICE uint32_t first_of_block(const Places& target, uint32_t block) {
    return block ? block * target.page.divisor() - target.first : 0;
}

// The first token that shares a block of the target with this one.
KVL_DEVICE uint32_t first_beside(const Places& target, uint32_t token) {
    uint32_t before = target.first + token;
    target.page.divide_out(&before);
    return token > before ? token - before : 0;
}

// Fills in the addresses of a group's tokens, of a plane with `once` those of a group's blocks.
KVL_DEVICE void find_addresses(const WorkHead& head, const uint64_t* words, const Part& part, uint32_t layer,
                               uint32_t group, Scratch* scratch) {
    static_assert(kThreads == kSides * kMostTokens);
    each_thread([&](uint32_t thread) {
        const uint32_t side = thread / kMostTokens, i = thread % kMostTokens;
        if (i >= part.group || !(part.sides >> side & 1)) return;
        const uint32_t at = group * part.group + i;
        uint64_t address = 0;
        if (at >= part.skip && at - part.skip < part.tokens) {
            uint32_t token = at - part.skip;
            if (part.once) token = first_of_block(head.target, token);
            const bool beside = part.kind == kEqualBlocks && side == kTarget;
            if (beside) token = first_beside(head.target, token);
            const Places& places = side % 2 && !beside ? head.target : head.source;
            address = token_address(words, places, part.side[side], layer, token);
        }
        scratch->address[side][i] = address;
    });
    barrier();
}

}  // namespace kvl

#endif  // KVLINGUA_CUDA_SCRATCH_H_
