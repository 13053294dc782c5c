#include "scales.h"

#include <algorithm>
#include <cstring>

#include "cast_environment.h"
#include "cast_kernels.h"
#include "types.h"

namespace kvl {
namespace {

// Calls visit(source, target) with the offsets of all dims until it returns false, and then does so itself.
template <typename Visit>
bool each_dim(const kvl_plane& plane, const Visit& visit) {
    kvl_axis axis[4] = {{1, 0, 0}, {1, 0, 0}, {1, 0, 0}, {1, 0, 0}};
    std::copy(plane.dim, plane.dim + plane.dims, axis);
    const auto &x = axis[0], &y = axis[1], &z = axis[2], &w = axis[3];
    for (int64_t i = 0; i < x.size; ++i)
        for (int64_t j = 0; j < y.size; ++j)
            for (int64_t k = 0; k < z.size; ++k)
                for (int64_t l = 0; l < w.size; ++l)
                    if (!visit(i * x.source + j * y.source + k * z.source + l * w.source,
                               i * x.target + j * y.target + k * z.target + l * w.target))
                        return false;
    return true;
}

char* address(const kvl_side& side, int64_t layer, int64_t offset, int64_t head) {
    return reinterpret_cast<char*>(side.base[layer] + static_cast<uint64_t>(offset + head * side.head));
}

// Where the scale of a token is, or the value of its block.
int64_t scale_offset(const kvl_view& view, const kvl_side& side, int64_t token) {
    const int64_t p = view.start + token;
    return view.table[p / view.page] * side.block + token_offset(side, p % view.page);
}
int64_t block_offset(const kvl_view& view, const kvl_side& side, int64_t token) {
    return view.table[(view.start + token) / view.page] * side.block;
}

// Whether the bits of both sides' scales are equal.
bool equal_scales(const kvl_plan& plan, const kvl_plane& plane, int64_t first, int64_t last) {
    int64_t before[2] = {-1, -1};
    for (int64_t t = first; t < last; ++t) {
        const int64_t source = scale_offset(plan.source, plane.source_scale, t);
        const int64_t target = scale_offset(plan.target, plane.target_scale, t);
        if (source == before[0] && target == before[1]) continue;
        before[0] = source;
        before[1] = target;
        for (int64_t layer = 0; layer < plan.layers; ++layer)
            for (int64_t head = 0; head < plane.heads; ++head)
                if (std::memcmp(address(plane.source_scale, layer, source, head),
                                address(plane.target_scale, layer, target, head), sizeof(float)) != 0)
                    return false;
    }
    return true;
}

// Whether the first of these tokens has the first of them in its target's block, too.
bool begins_block(const kvl_view& target, int64_t t, int64_t first) {
    return t == first || (target.start + t) % target.page == 0;
}

// Whether the values that meet in a block of the target are equal.
bool equal_in_blocks(const kvl_plan& plan, const kvl_plane& plane, int64_t first, int64_t last) {
    const size_t itemsize = static_cast<size_t>(type_bytes(plane.source_type));
    int64_t one = 0, before = 0;  // the value of the block's first token, and that of the token before this one
    for (int64_t t = first; t < last; ++t) {
        const int64_t source = block_offset(plan.source, plane.source, t);
        if (begins_block(plan.target, t, first)) one = before = source;
        if (source == before) continue;
        before = source;
        for (int64_t layer = 0; layer < plan.layers; ++layer)
            for (int64_t head = 0; head < plane.heads; ++head) {
                const char *a = address(plane.source, layer, one, head),
                           *b = address(plane.source, layer, source, head);
                if (!each_dim(plane, [&](int64_t at, int64_t) { return std::memcmp(a + at, b + at, itemsize) == 0; }))
                    return false;
            }
    }
    return true;
}

float scale_or_one(const kvl_side& side, int64_t layer, int64_t offset, int64_t head) {
    float scale = 1.0f;
    if (side.base) std::memcpy(&scale, address(side, layer, offset, head), sizeof(scale));
    return scale;
}

// A block's values of all layers and heads, from the source's block that this token is in.
void convert_block(const kvl_plan& plan, const kvl_plane& plane, const CastKernels& kernels, int64_t token) {
    const auto offset = [&](const kvl_view& view, const kvl_side& side) {
        return side.base ? block_offset(view, side, token) : 0;
    };
    const int64_t source = offset(plan.source, plane.source), target = offset(plan.target, plane.target);
    const int64_t scale[] = {offset(plan.source, plane.source_scale), offset(plan.target, plane.target_scale)};
    for (int64_t layer = 0; layer < plan.layers; ++layer)
        for (int64_t head = 0; head < plane.heads; ++head) {
            const char* from = address(plane.source, layer, source, head);
            char* to = address(plane.target, layer, target, head);
            if (plane.op == KVL_COPY) {
                const size_t itemsize = static_cast<size_t>(type_bytes(plane.source_type));
                each_dim(plane, [&](int64_t s, int64_t t) {
                    std::memcpy(to + t, from + s, itemsize);
                    return true;
                });
                continue;
            }
            const float factor[] = {scale_or_one(plane.source_scale, layer, scale[0], head), plane.factor,
                                    1.0f / scale_or_one(plane.target_scale, layer, scale[1], head)};
            CastRows number = {};
            number.size = number.count[0] = number.count[1] = 1;
            for (int i = 0; i < 3; ++i) number.factor[i] = factor + i;
            each_dim(plane, [&](int64_t s, int64_t t) {
                number.source = from + s;
                number.target = to + t;
                kernels.cast[plane.source_type - 1][plane.target_type - 1](number);
                return true;
            });
        }
}

}  // namespace

int32_t check_scales(const kvl_plan& plan, int64_t first, int64_t last) {
    for (const kvl_plane* plane = plan.plane; plane < plan.plane + plan.planes; ++plane) {
        if (plane->op == KVL_COPY_EQUAL && !equal_scales(plan, *plane, first, last)) return KVL_SCALES;
        if (plane->once && !equal_in_blocks(plan, *plane, first, last)) return KVL_SCALES;
    }
    return KVL_OK;
}

void convert_once(const kvl_plan& plan, const Kernels& kernels, int64_t first, int64_t last) {
    const DefaultEnvironment environment;
    const CastKernels& casts = find_cast_kernels(kernels);
    for (const kvl_plane* plane = plan.plane; plane < plan.plane + plan.planes; ++plane)
        for (int64_t t = first; plane->once && t < last; ++t)
            if (begins_block(plan.target, t, first)) convert_block(plan, *plane, casts, t);
}

}  // namespace kvl
