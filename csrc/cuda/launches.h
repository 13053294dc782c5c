// A plan, cut into launches.
#ifndef KVLINGUA_CUDA_LAUNCHES_H_
#define KVLINGUA_CUDA_LAUNCHES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "parts.h"
#include "work.h"

namespace kvl {

// What a kernel gets as its argument, and its grid.
struct Launch {
    WorkHead head;
    std::vector<uint64_t> words;
    uint32_t blocks;
};

// The launches of a checked plan, in order: one, where its tables fit into `most_words`, and another one before it if
// something has to be compared. Throws TooLarge and std::bad_alloc.
std::vector<Launch> find_launches(const kvl_plan& plan, uint64_t verdict, const Tuning& tuning, size_t most_words);

}  // namespace kvl

#endif  // KVLINGUA_CUDA_LAUNCHES_H_
