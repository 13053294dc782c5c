// Copies of what both sides have in one piece, and comparisons.
#ifndef KVLINGUA_CUDA_ROW_PART_H_
#define KVLINGUA_CUDA_ROW_PART_H_

#include "scratch.h"

namespace kvl {

// Where an item is on both sides: an index through the part's loops, the last one fastest. False if its token isn't
// there.
KVL_DEVICE bool find_item(const Part& part, const Scratch& scratch, uint32_t item, uint64_t* source, uint64_t* target) {
    uint64_t from = 0, to = 0;
    uint32_t token = 0;
    for (uint32_t i = part.loops; i-- > 0;) {
        const Loop& loop = part.loop[i];
        uint32_t index = item;
        if (i > 0) item = loop.size.divide_out(&index);
        if (i == part.token_loop) {
            token = index;
        } else {
            from += index * loop.source;
            to += index * loop.target;
        }
    }
    *source = scratch.address[kSource][token] + from;
    *target = scratch.address[kTarget][token] + to;
    return scratch.address[kSource][token] != 0;
}

// Several reads of a thread are under way before the first of its writes.
template <class V>
KVL_DEVICE void copy_rows(const Part& part, const Scratch& scratch) {
    constexpr uint32_t kTogether = 4;
    each_thread([&](uint32_t thread) {
        for (uint32_t first = thread; first < part.items; first += kTogether * kThreads) {
            V value[kTogether];
            uint64_t to[kTogether];
            KVL_UNROLL
            for (uint32_t i = 0; i < kTogether; ++i) {
                const uint32_t item = first + i * kThreads;
                uint64_t from;
                if (item >= part.items || !find_item(part, scratch, item, &from, &to[i]))
                    to[i] = 0;
                else
                    value[i] = load<V>(from);
            }
            KVL_UNROLL
            for (uint32_t i = 0; i < kTogether; ++i)
                if (to[i]) store(to[i], value[i]);
        }
    });
}

KVL_DEVICE void run_rows(const Part& part, const Scratch& scratch) {
    with_access<16>(part.unit, [&](auto unit) { copy_rows<decltype(unit)>(part, scratch); });
}

// Writes to the verdict if anything differs.
template <class V>
KVL_DEVICE void compare_rows(const Part& part, const Scratch& scratch, uint64_t verdict) {
    each_thread([&](uint32_t thread) {
        for (uint32_t item = thread; item < part.items; item += kThreads) {
            uint64_t one, other;
            if (find_item(part, scratch, item, &one, &other) && load<V>(one) != load<V>(other))
                store<uint32_t>(verdict, KVL_SCALES);
        }
    });
}

KVL_DEVICE void run_comparison(const Part& part, const Scratch& scratch, uint64_t verdict) {
    switch (part.unit) {
        case 4:
            return compare_rows<Bytes4>(part, scratch, verdict);
        case 2:
            return compare_rows<Bytes2>(part, scratch, verdict);
        default:
            return compare_rows<Bytes1>(part, scratch, verdict);
    }
}

}  // namespace kvl

#endif  // KVLINGUA_CUDA_ROW_PART_H_
