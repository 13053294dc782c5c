#include "planes.h"

#include <cstdlib>

#include "types.h"

namespace kvl {
namespace {

// Whether two planes differ in nothing but their bases.
bool alike(const kvl_plane& a, const kvl_plane& b) {
    const auto same = [](const kvl_side& x, const kvl_side& y) {
        return x.block == y.block && x.head == y.head && x.token == y.token && x.tile_tokens == y.tile_tokens &&
               x.tile == y.tile;
    };
    if (type_bytes(a.source_type) != type_bytes(b.source_type) || a.heads != b.heads || a.dims != b.dims) return false;
    for (int64_t i = 0; i < a.dims; ++i)
        if (a.dim[i].size != b.dim[i].size || a.dim[i].source != b.dim[i].source || a.dim[i].target != b.dim[i].target)
            return false;
    return same(a.source, b.source) && same(a.target, b.target);
}

}  // namespace

bool is_copied(const kvl_plane& plane) { return !plane.once && (plane.op == KVL_COPY || plane.op == KVL_COPY_EQUAL); }

int64_t woven_planes(const kvl_plane* plane, const kvl_plane* end, int64_t layers) {
    if (plane + 1 >= end || !is_copied(plane[1]) || !alike(plane[0], plane[1])) return 1;
    const kvl_plane &a = plane[0], &b = plane[1];
    const auto step = [&](const kvl_side kvl_plane::* side, int64_t layer) {
        return distance((a.*side).base[layer], (b.*side).base[layer]);
    };
    const int64_t source = step(&kvl_plane::source, 0), target = step(&kvl_plane::target, 0);
    for (int64_t layer = 1; layer < layers; ++layer)
        if (step(&kvl_plane::source, layer) != source || step(&kvl_plane::target, layer) != target) return 1;
    return std::llabs(source) < a.source.block || std::llabs(target) < a.target.block ? 2 : 1;
}

}  // namespace kvl
