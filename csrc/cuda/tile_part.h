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
};

KVL_DEVICE Slice find_slice(const Part& part, uint32_t slice) {
    const uint32_t chunk = slice % part.chunks, first = chunk * part.chunk;
    Slice found = {0, 0, first, part.size - first < part.chunk ? part.size - first : part.chunk};
    uint32_t rest = slice / part.chunks;
    for (uint32_t i = part.loops; i-- > 0;) {
        uint32_t index = rest;
        if (i > 0) rest = part.loop[i].size.divide_out(&index);
        found.source += index * part.loop[i].source;
        found.target += index * part.loop[i].target;
    }
    return found;
}

// Says of each vector of tokens whether they are all there and lie one after the other.
template <class U>
KVL_DEVICE void join_tokens(const Part& part, const uint64_t* address, uint32_t* joined) {
    constexpr uint32_t kEach = Tile<U>::kEach;
    each_thread([&](uint32_t thread) {
        if (thread >= part.group / kEach) return;
        const uint64_t* token = address + thread * kEach;
        bool whole = token[0] != 0;
        for (uint32_t i = 1; i < kEach; ++i) whole = whole && token[i] == token[0] + i * sizeof(U);
        joined[thread] = whole;
    });
    barrier();
}

// From dims next to each other to tokens next to each other. Rows of the tile are tokens.
template <class U>
KVL_DEVICE void transpose_from_dims(const Part& part, const Slice& slice, Scratch* scratch) {
    const Tile<U> tile(scratch->tile);
    constexpr uint32_t kEach = Tile<U>::kEach;
    const uint32_t columns = part.per_row.divisor(), vectors = part.group / kEach, step = part.chunk / columns;
    each_thread([&](uint32_t thread) {
        for (uint32_t item = thread; item < part.group * columns; item += kThreads) {
            uint32_t column = item;
            const uint32_t token = part.per_row.divide_out(&column);
            column *= step;
            const uint64_t at = scratch->address[kSource][token];
            if (!at || column >= slice.dims) continue;
            const uint64_t from = at + slice.source + (slice.first + column) * sizeof(U);
            if (step == 1)
                *tile.template at<U>(token, column) = load<U>(from);
            else
                *tile.template at<Bytes16>(token, column) = load<Bytes16>(from);
        }
    });
    barrier();
    each_thread([&](uint32_t thread) {
        for (uint32_t item = thread; item < slice.dims * vectors; item += kThreads) {
            const uint32_t vector = item % vectors, dim = item / vectors;
            const uint64_t beside = slice.target + (slice.first + dim) * part.dim_step;
            const uint64_t* address = scratch->address[kTarget] + vector * kEach;
            if (scratch->joined[vector] && (address[0] + beside) % 16 == 0) {
                store(address[0] + beside, tile.column(vector * kEach, dim));
                continue;
            }
            for (uint32_t i = 0; i < kEach; ++i)
                if (address[i]) store(address[i] + beside, *tile.template at<U>(vector * kEach + i, dim));
        }
    });
}

// From tokens next to each other to dims next to each other. Rows of the tile are dims.
template <class U>
KVL_DEVICE void transpose_to_dims(const Part& part, const Slice& slice, Scratch* scratch) {
    const Tile<U> tile(scratch->tile);
    constexpr uint32_t kEach = Tile<U>::kEach;
    const uint32_t columns = part.per_row.divisor(), vectors = part.group / kEach, step = part.chunk / columns;
    each_thread([&](uint32_t thread) {
        for (uint32_t item = thread; item < slice.dims * vectors; item += kThreads) {
            const uint32_t vector = item % vectors, dim = item / vectors;
            const uint64_t beside = slice.source + (slice.first + dim) * part.dim_step;
            const uint64_t* address = scratch->address[kSource] + vector * kEach;
            if (scratch->joined[vector] && (address[0] + beside) % 16 == 0) {
                *tile.template at<Bytes16>(dim, vector * kEach) = load<Bytes16>(address[0] + beside);
                continue;
            }
            for (uint32_t i = 0; i < kEach; ++i)
                if (address[i]) *tile.template at<U>(dim, vector * kEach + i) = load<U>(address[i] + beside);
        }
    });
    barrier();
    each_thread([&](uint32_t thread) {
        for (uint32_t item = thread; item < part.group * columns; item += kThreads) {
            uint32_t column = item;
            const uint32_t token = part.per_row.divide_out(&column);
            column *= step;
            const uint64_t at = scratch->address[kTarget][token];
            if (!at || column >= slice.dims) continue;
            const uint64_t to = at + slice.target + (slice.first + column) * sizeof(U);
            if (step == 1)
                store(to, *tile.template at<U>(column, token));
            else
                store(to, tile.column(column, token));
        }
    });
}

template <class U>
KVL_DEVICE void transpose(const Part& part, uint32_t slice, Scratch* scratch) {
    const Slice found = find_slice(part, slice);
    const bool from_dims = part.kind == kFromDims;
    join_tokens<U>(part, scratch->address[from_dims ? kTarget : kSource], scratch->joined);
    if (from_dims)
        transpose_from_dims<U>(part, found, scratch);
    else
        transpose_to_dims<U>(part, found, scratch);
}

KVL_DEVICE void run_tile(const Part& part, uint32_t slice, Scratch* scratch) {
    switch (part.unit) {
        case 16:
            return transpose<Bytes16>(part, slice, scratch);
        case 8:
            return transpose<Bytes8>(part, slice, scratch);
        case 4:
            return transpose<Bytes4>(part, slice, scratch);
        case 2:
            return transpose<Bytes2>(part, slice, scratch);
        default:
            return transpose<Bytes1>(part, slice, scratch);
    }
}

}  // namespace kvl

#endif  // KVLINGUA_CUDA_TILE_PART_H_
