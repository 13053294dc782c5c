// Copies that transpose tokens and dims, by way of a tile in shared memory: rows of it are read as they lie in the
// source, columns are written as they lie in the target, both 16 bytes at a time where addresses allow it.
#ifndef KVLINGUA_CUDA_TILE_PART_H_
#define KVLINGUA_CUDA_TILE_PART_H_

#include "row_part.h"
#include "scratch.h"

namespace kvl {

// A tile of units U. A row's pieces of 16 bytes change places from one vector of rows to the next, so that neither
// rows nor columns meet in the same banks.
template <class U>
class Tile {
  public:
    static constexpr uint32_t kEach = 16 / sizeof(U);  // units of a vector

    KVL_DEVICE explicit Tile(uint8_t* bytes) : bytes_(bytes) {}

    // A unit, or from a multiple of kEach on a whole vector of a row.
    template <class V>
    KVL_DEVICE V* at(uint32_t row, uint32_t column) const {
        const uint32_t byte = column * static_cast<uint32_t>(sizeof(U));
        const uint32_t piece = (byte / 16) ^ (row / kEach % (kTileRow / 16));
        return reinterpret_cast<V*>(bytes_ + row * kTileRow + piece * 16 + byte % 16);
    }

    // A vector of a column.
    KVL_DEVICE Bytes16 column(uint32_t row, uint32_t column) const {
        union {
            U unit[kEach];
            Bytes16 all;
        } vector;
        KVL_UNROLL
        for (uint32_t i = 0; i < kEach; ++i) vector.unit[i] = *at<U>(row + i, column);
        return vector.all;
    }

  private:
    uint8_t* bytes_;
};

// What a grid block transposes: tokens of a group, dims [first, first + dims) of one head.
struct Slice {
    uint64_t source, target;  // bytes from a token's address
    uint32_t first, dims;
    Divider columns;  // accesses along the dims, where dims are next to each other
};

KVL_DEVICE Slice find_slice(const Part& part, uint32_t slice) {
    uint32_t chunk = slice;
    uint32_t rest = part.chunks.divide_out(&chunk);
    const bool last = chunk + 1 == part.chunks.divisor();
    const uint32_t first = chunk * part.chunk;
    Slice found = {0, 0, first, last ? part.size - first : part.chunk, last ? part.last_row : part.per_row};
    for (uint32_t i = part.loops; i-- > 0;) {
        uint32_t index = rest;
        if (i > 0) rest = part.loop[i].size.divide_out(&index);
        found.source += index * part.loop[i].source;
        found.target += index * part.loop[i].target;
    }
    return found;
}

// The side that has dims next to each other. Calls move(V(), token, dim, address) for each access V of the thread's: a
// vector of dims of a token, or one dim where addresses aren't aligned.
template <class U, class F>
KVL_DEVICE void walk_dims(const Part& part, const Slice& slice, const uint64_t* address, uint64_t beside,
                          const F& move) {
    each_thread([&](uint32_t thread) {
        for (uint32_t item = thread; item < part.group * slice.columns.divisor(); item += kThreads) {
            uint32_t dim = item;
            const uint32_t token = slice.columns.divide_out(&dim);
            dim *= part.count;
            if (!address[token]) continue;
            const uint64_t at = address[token] + beside + (slice.first + dim) * sizeof(U);
            if (part.count == 1)
                move(U(), token, dim, at);
            else
                move(Bytes16(), token, dim, at);
        }
    });
}

// The side that has tokens next to each other. Calls move(V(), dim, token, address): a vector of tokens, where they are
// all there, lie one after the other and are aligned, else token by token.
template <class U, uint32_t kTokens, class F>
KVL_DEVICE void walk_tokens(const Part& part, const Slice& slice, const uint64_t* address, const uint32_t* joined,
                            uint64_t beside, const F& move) {
    constexpr uint32_t kEach = Tile<U>::kEach, kVectors = kTokens / kEach;
    each_thread([&](uint32_t thread) {
        for (uint32_t item = thread; item < slice.dims * kVectors; item += kThreads) {
            const uint32_t vector = item % kVectors, dim = item / kVectors, token = vector * kEach;
            const uint64_t there = beside + (slice.first + dim) * part.dim_step;
            if (joined[vector] && (address[token] + there) % 16 == 0) {
                move(Bytes16(), dim, token, address[token] + there);
                continue;
            }
            for (uint32_t i = 0; i < kEach; ++i)
                if (address[token + i]) move(U(), dim, token + i, address[token + i] + there);
        }
    });
}

// Says of each vector of tokens whether they are all there and lie one after the other.
template <class U, uint32_t kTokens>
KVL_DEVICE void join_tokens(const uint64_t* address, uint32_t* joined) {
    constexpr uint32_t kEach = Tile<U>::kEach;
    each_thread([&](uint32_t thread) {
        if (thread >= kTokens / kEach) return;
        const uint64_t* token = address + thread * kEach;
        bool whole = token[0] != 0;
        for (uint32_t i = 1; i < kEach; ++i) whole = whole && token[i] == token[0] + i * sizeof(U);
        joined[thread] = whole;
    });
    barrier();
}

// What is read from one side becomes rows of the tile, and the other side gets its columns.
template <class U, bool kOfDims>
KVL_DEVICE void transpose(const Part& part, const Slice& slice, Scratch* scratch) {
    constexpr uint32_t kTokens = tokens_of_tile(kOfDims, sizeof(U));
    const Tile<U> tile(scratch->tile);
    const auto read = [&](auto access, uint32_t row, uint32_t column, uint64_t at) {
        using V = decltype(access);
        *tile.template at<V>(row, column) = load<V>(at);
    };
    const auto write = [&](auto access, uint32_t column, uint32_t row, uint64_t at) {
        if constexpr (sizeof(access) == 16)
            store(at, tile.column(row, column));
        else
            store(at, *tile.template at<U>(row, column));
    };
    const uint64_t *source = scratch->address[kSource], *target = scratch->address[kTarget];
    join_tokens<U, kTokens>(kOfDims ? target : source, scratch->joined);
    if constexpr (kOfDims) {
        walk_dims<U>(part, slice, source, slice.source, read);
        barrier();
        walk_tokens<U, kTokens>(part, slice, target, scratch->joined, slice.target, write);
    } else {
        walk_tokens<U, kTokens>(part, slice, source, scratch->joined, slice.source, read);
        barrier();
        walk_dims<U>(part, slice, target, slice.target, write);
    }
}

KVL_DEVICE void run_tile(const Part& part, uint32_t slice, Scratch* scratch) {
    const Slice found = find_slice(part, slice);
    with_access<8>(part.unit, [&](auto unit) {
        if (part.kind == kFromDims)
            transpose<decltype(unit), true>(part, found, scratch);
        else
            transpose<decltype(unit), false>(part, found, scratch);
    });
}

}  // namespace kvl

#endif  // KVLINGUA_CUDA_TILE_PART_H_
