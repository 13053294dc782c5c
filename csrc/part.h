// One plane of a copy, or two that are woven into each other.
#ifndef KVLINGUA_PART_H_
#define KVLINGUA_PART_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "kvlingua.h"
#include "places.h"
#include "runs.h"
#include "staging.h"

namespace kvl {

// Groups of tokens go from the source to the target, or to the stage and from there to the target.
struct Part {
    // From `plane` on; planes behind it are taken in too if they are woven.
    Part(const kvl_plan& plan, const kvl_plane& plane, const Kernels& kernels, bool stream, const Table& source,
         const Table& target);

    const kvl_plane* plane;
    int64_t planes;
    int64_t heads;  // that are visited one by one, since they lie outside tokens in the source; or 1
    Staging staging;
    std::vector<Places> ways;             // from the source, and, if staged, from the stage
    std::vector<size_t> begins, unstage;  // where each group begins in these; the end at last
};

}  // namespace kvl

#endif  // KVLINGUA_PART_H_
