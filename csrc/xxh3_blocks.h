// XXH3's long loop over a type V of vectors that are shorter than a stripe. To be included inside a KVL_TARGET region
// where there is one.
#ifndef KVLINGUA_XXH3_BLOCKS_H_
#define KVLINGUA_XXH3_BLOCKS_H_

#include "xxh3.h"

namespace {

// V has a vector T of kLanes numbers of 64 bits:
//   load, store              unaligned
//   added(sum, data, key)    accumulators with data of their own and their neighbours'
//   scrambled(sum, key)      accumulators after a block
template <class V>
inline void add_blocks(uint64_t* accumulators, const char* data, size_t blocks) {
    constexpr size_t kVectors = 8 / V::kLanes, kBytes = 8 * V::kLanes;
    const unsigned char* last = kvl::kXxh3Secret + sizeof kvl::kXxh3Secret - kvl::kStripeBytes;
    typename V::T sum[kVectors];
    for (size_t j = 0; j < kVectors; ++j) sum[j] = V::load(accumulators + j * V::kLanes);
    for (; blocks; --blocks) {
        for (size_t i = 0; i < kvl::kStripesPerBlock; ++i, data += kvl::kStripeBytes)
            for (size_t j = 0; j < kVectors; ++j)
                sum[j] = V::added(sum[j], V::load(data + j * kBytes), V::load(kvl::kXxh3Secret + 8 * i + j * kBytes));
        for (size_t j = 0; j < kVectors; ++j) sum[j] = V::scrambled(sum[j], V::load(last + j * kBytes));
    }
    for (size_t j = 0; j < kVectors; ++j) V::store(accumulators + j * V::kLanes, sum[j]);
}

}  // namespace

#endif  // KVLINGUA_XXH3_BLOCKS_H_
