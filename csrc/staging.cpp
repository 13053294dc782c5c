#include "staging.h"

#include <algorithm>

#include "sorting.h"
#include "types.h"

namespace kvl {
namespace {

constexpr int64_t kShortBytes = 128;       // less of this in one piece, and lines are read or written in parts
constexpr int64_t kRowBytes = 32;          // no less than this, and rows are copied as quickly directly
constexpr int64_t kStageBytes = 64 << 10;  // of the memory, which shares the second-level cache with what is fetched
constexpr int64_t kFarTokens = 256;        // more of them together make no difference

struct Step {
    int64_t size, stride;
};

// Bytes that lie together on one side, where so many tokens do.
int64_t together(const kvl_plane& plane, int64_t heads, const kvl_side& side, int64_t kvl_axis::* stride,
                 int64_t itemsize, int64_t tokens) {
    Step steps[7];
    int count = 0;
    for (int64_t i = 0; i < plane.dims; ++i) steps[count++] = {plane.dim[i].size, plane.dim[i].*stride};
    steps[count++] = {heads, side.head};
    if (side.tile_tokens && tokens > side.tile_tokens) {
        steps[count++] = {side.tile_tokens, side.token};
        steps[count++] = {tokens / side.tile_tokens, side.tile};
    } else {
        steps[count++] = {tokens, side.token};
    }
    sort_few(steps, steps + count, [](const Step& a, const Step& b) { return a.stride < b.stride; });
    int64_t bytes = itemsize;
    for (const Step* step = steps; step < steps + count; ++step) {
        if (step->size == 1) continue;
        if (step->stride != bytes) break;
        bytes *= step->size;
    }
    return bytes;
}

}  // namespace

Staging find_staging(const kvl_plane& plane, int64_t heads, const Places& direct, const Table& source,
                     const Table& target) {
    const int64_t itemsize = type_bytes(plane.source_type);
    const int64_t from = std::min(source.typical, kFarTokens), to = std::min(target.typical, kFarTokens);
    const int64_t common = std::min(from, to);
    const auto read = [&](int64_t tokens) {
        return together(plane, heads, plane.source, &kvl_axis::source, itemsize, tokens);
    };
    const auto written = [&](int64_t tokens) {
        return together(plane, heads, plane.target, &kvl_axis::target, itemsize, tokens);
    };
    const bool short_read = read(common) < kShortBytes && read(from) > read(common);
    const bool short_write = written(common) < kShortBytes && written(to) > written(common);
    const Nest nest = direct.nest_of(common);
    const bool rows = !nest.transposes() && nest.row_bytes() >= kRowBytes;
    Staging staging;
    if ((!short_read && !short_write) || rows) return staging;

    // Tokens one by one in the target are rows, and have to lie as rows in the memory too; else they lie there as in
    // the source, which is then read straight on.
    const bool by_dims = plane.source.token == itemsize && !plane.source.tile_tokens && common >= 16;
    int64_t order[4] = {0, 1, 2, 3};
    bool target_rows = false;
    for (int64_t i = 0; i < plane.dims; ++i) target_rows |= plane.dim[i].target == itemsize;
    const auto stride = target_rows && !by_dims ? &kvl_axis::target : &kvl_axis::source;
    sort_few(order, order + plane.dims,
             [&](int64_t a, int64_t b) { return plane.dim[a].*stride < plane.dim[b].*stride; });

    int64_t token_bytes = itemsize * heads;
    for (int64_t i = 0; i < plane.dims; ++i) token_bytes *= plane.dim[i].size;
    const int64_t most = std::max<int64_t>(1, kStageBytes / token_bytes);
    staging.tokens = std::max(from, to);
    if (staging.tokens > most) staging.tokens = int64_t{1} << (63 - __builtin_clzll(static_cast<uint64_t>(most)));
    int64_t bytes = itemsize;
    if (by_dims) bytes *= staging.tokens;
    for (int64_t i = 0; i < plane.dims; ++i) {
        staging.dim[order[i]] = bytes;
        bytes *= plane.dim[order[i]].size;
    }
    staging.side.token = by_dims ? itemsize : bytes;
    if (!by_dims) bytes *= staging.tokens;
    staging.side.head = bytes;
    staging.bytes = bytes * heads;
    return staging;
}

}  // namespace kvl
