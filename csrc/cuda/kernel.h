// The kernel: a grid block finds its part of the work and does it.
#ifndef KVLINGUA_CUDA_KERNEL_H_
#define KVLINGUA_CUDA_KERNEL_H_

#include "cast_part.h"
#include "row_part.h"
#include "scratch.h"
#include "tile_part.h"

namespace kvl {

KVL_DEVICE void run_block(const WorkHead& head, const uint64_t* words, Scratch* scratch) {
    if (head.verdict && !head.judges && load<uint32_t>(head.verdict)) return;
    const Part* part = reinterpret_cast<const Part*>(words);
    uint32_t group = block_index();
    for (uint32_t i = 1; i < head.parts && group >= part[1].first_block; ++i) ++part;
    group -= part->first_block;
    const uint32_t rest = part->slices.divide_out(&group), slice = group;
    group = rest;
    const uint32_t layer = part->groups.divide_out(&group);
    find_addresses(head, words, *part, layer, group, scratch);
    switch (part->kind) {
        case kRows:
            return run_rows(*part, *scratch);
        case kFromDims:
        case kToDims:
            return run_tile(*part, slice, scratch);
        case kCast:
        case kQuantise:
            return run_cast(*part, scratch);
        default:
            return run_comparison(*part, *scratch, head.verdict);
    }
}

#if defined(KVL_GRID)
template <uint32_t kWords>
KVL_KERNEL convert_kernel(KVL_ARGUMENT Work<kWords> work) {
    KVL_SHARED Scratch scratch;
    const Work<kWords>& there = in_place(work);
    run_block(there.head, there.words, &scratch);
}
#endif

}  // namespace kvl

#endif  // KVLINGUA_CUDA_KERNEL_H_
