#include "part.h"

#include <algorithm>

#include "planes.h"
#include "types.h"

namespace kvl {
namespace {

// All axes that a token has, from one side to the other; dims' strides are the plane's where none are given.
std::vector<Axis> token_axes(const kvl_plane& plane, int64_t heads, const kvl_side& source, const int64_t* source_dims,
                             const kvl_side& target, const int64_t* target_dims) {
    std::vector<Axis> axes = {{heads, source.head, target.head}};
    for (int64_t i = 0; i < plane.dims; ++i)
        axes.push_back({plane.dim[i].size, source_dims ? source_dims[i] : plane.dim[i].source,
                        target_dims ? target_dims[i] : plane.dim[i].target});
    return axes;
}

}  // namespace

Part::Part(const kvl_plan& plan, const kvl_plane& first, const Kernels& kernels, bool stream, const Table& source,
           const Table& target)
    : plane(&first), planes(1), heads(1) {
    const kvl_side &from = first.source, &to = first.target;
    if (first.heads > 1 && from.head > std::max(from.token, from.tile)) heads = first.heads;
    const int64_t item = type_bytes(first.source_type), together = heads > 1 ? 1 : first.heads;
    const auto way = [&](const kvl_side& a, const kvl_side& b, const std::vector<Axis>& axes, bool streamed) {
        return Places(a, b, axes, item, kernels, streamed);
    };
    std::vector<Axis> axes = token_axes(first, together, from, nullptr, to, nullptr);
    const Places direct = way(from, to, axes, stream);
    staging = find_staging(first, together, direct, source, target);
    if (staging.tokens) {
        const kvl_side& stage = staging.side;
        ways.push_back(way(from, stage, token_axes(first, together, from, nullptr, stage, staging.dim), false));
        ways.push_back(way(stage, to, token_axes(first, together, stage, staging.dim, to, nullptr), stream));
        return;
    }
    planes = woven_planes(&first, plan.plane + plan.planes, plan.layers);
    const kvl_plane& other = plane[planes - 1];
    axes.push_back({planes, distance(from.base[0], other.source.base[0]), distance(to.base[0], other.target.base[0])});
    ways.push_back(way(from, to, axes, stream));
}

}  // namespace kvl
