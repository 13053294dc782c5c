// From a plan's planes to parts of a launch.
#ifndef KVLINGUA_CUDA_PARTS_H_
#define KVLINGUA_CUDA_PARTS_H_

#include <cstdint>
#include <vector>

#include "work.h"

namespace kvl {

// A plan that is right but has a number that no GPU's memory could give it.
struct TooLarge {};

// What of a plan a launch does.
struct Range {
    int64_t first, last;       // tokens
    int64_t layer, layer_end;  // layers
    int64_t plane, plane_end;  // planes
    bool judges;               // it compares what these planes have to compare; else it converts
    int64_t tokens() const { return last - first; }
    int64_t layers() const { return layer_end - layer; }
};

// How much work is put together.
struct Tuning {
    int64_t block_bytes, blocks;
};

// Where the tokens of a range are on one side, but for the table. Throws TooLarge.
Places find_places(const kvl_view& view, const Range& range);

// A plane's part, without bases, and its number of grid blocks; none if the plane has nothing to compare. Throws
// TooLarge.
struct Made {
    Part part;
    int64_t blocks;
    const kvl_side* side[kSides];  // where its bases come from; null: there is no such side
};
Made make_part(const kvl_plan& plan, const kvl_plane& plane, const Range& range, const Tuning& tuning);

// Whether a plane has something to compare before anything is written.
bool compares(const kvl_plane& plane);

}  // namespace kvl

#endif  // KVLINGUA_CUDA_PARTS_H_
