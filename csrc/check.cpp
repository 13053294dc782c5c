#include "check.h"

#include <cmath>
#include <initializer_list>
#include <vector>

#include "reach.h"
#include "tables.h"
#include "types.h"

// ctypes declares them by hand.
static_assert(sizeof(kvl_span) == 16 && sizeof(kvl_view) == 56 && sizeof(kvl_axis) == 24 && sizeof(kvl_side) == 48);
static_assert(sizeof(kvl_plane) == 328 && sizeof(kvl_plan) == 168);

namespace kvl {
namespace {

// Beyond these a number is garbage.
constexpr int64_t kMost = int64_t{1} << 40;                      // of anything that is counted, elements among it
constexpr int64_t kMostLayers = 1 << 16, kMostPlanes = 1 << 16;  // of what the caller has tables for

bool counts(int64_t value, int64_t least) { return value >= least && value <= kMost; }

// Where a plane's bytes are read and written, for all planes and layers.
struct Touched {
    std::vector<kvl_span> read, written;
};

int32_t check_view(const kvl_view& view, int64_t tokens) {
    if (!counts(view.entries, 0) || !counts(view.blocks, 1) || !counts(view.page, 1) || !counts(view.start, 0) ||
        !counts(view.spans, 0))
        return KVL_SIZE;
    if (view.spans && !view.span) return KVL_NULL;
    if (!spans_ascend(view.span, view.spans)) return KVL_SPAN;
    return check_table(view, tokens);
}

// One side of a plane, or of its scales: `dims` axes whose strides are `stride` of kvl_axis.
int32_t check_side(const kvl_plan& plan, const kvl_plane& plane, const kvl_side& side, const kvl_view& view,
                   int64_t itemsize, int64_t kvl_axis::* stride, int64_t dims, std::vector<kvl_span>* touched) {
    if (!side.base) return KVL_NULL;
    if (!counts(side.tile_tokens, 0)) return KVL_SIZE;
    Reach reach(itemsize);
    bool right = true;
    const auto step = [&](int64_t bytes) { right &= bytes >= 0 && bytes % itemsize == 0; };
    for (const int64_t bytes : {side.block, side.head, side.token, side.tile}) step(bytes);
    for (int64_t i = 0; i < dims; ++i) step(plane.dim[i].*stride);
    if (!right) return KVL_STRIDE;
    reach.add(view.blocks, side.block);
    reach.add(plane.heads, side.head);
    reach.add_tokens(side, view.page);
    for (int64_t i = 0; i < dims; ++i) reach.add(plane.dim[i].size, plane.dim[i].*stride);
    if (!reach.bytes()) return KVL_STRIDE;
    for (int64_t layer = 0; layer < plan.layers; ++layer) {
        const uint64_t base = side.base[layer];
        if (!base) return KVL_NULL;
        if (base % static_cast<uint64_t>(itemsize)) return KVL_STRIDE;
        kvl_span all{base, 0};
        if (__builtin_add_overflow(base, reach.bytes(), &all.end)) return KVL_STRIDE;
        if (!spans_hold(view.span, view.spans, all.begin, all.end)) return KVL_SPAN;
        touched->push_back(all);
    }
    return KVL_OK;
}

// Whether the operation exists and can be done to these types, with the scales that are there.
int32_t check_op(const kvl_plane& plane) {
    const int64_t from = type_bytes(plane.source_type), to = type_bytes(plane.target_type);
    if (!from || !to || plane.reserved != 0) return KVL_SIZE;
    if (plane.once != 0 && (plane.once != 1 || (plane.op != KVL_COPY && plane.op != KVL_CAST))) return KVL_SIZE;
    const bool numbers = plane.source_type != KVL_BYTE && plane.target_type != KVL_BYTE;
    switch (plane.op) {
        case KVL_COPY:
            return from == to ? KVL_OK : KVL_SIZE;
        case KVL_COPY_EQUAL:
            if (!plane.source_scale.base || !plane.target_scale.base) return KVL_NULL;
            return from == to ? KVL_OK : KVL_SIZE;
        case KVL_CAST:
            return numbers && std::isfinite(plane.factor) && plane.factor > 0 ? KVL_OK : KVL_SIZE;
        case KVL_QUANTISE:
            if (!plane.target_scale.base) return KVL_NULL;
            return numbers && is_fp8(plane.target_type) ? KVL_OK : KVL_SIZE;
        default:
            return KVL_SIZE;
    }
}

int32_t check_plane(const kvl_plan& plan, const kvl_plane& plane, Touched* touched, __int128* elements) {
    if ((plane.heads != 1 && plane.heads != plan.heads) || plane.dims < 1 || plane.dims > 4) return KVL_SIZE;
    __int128 count = static_cast<__int128>(plan.tokens) * plane.heads;
    for (int64_t i = 0; i < plane.dims; ++i) {
        if (!counts(plane.dim[i].size, 1)) return KVL_SIZE;
        count *= plane.dim[i].size;
        if (count > kMost) return KVL_SIZE;
    }
    *elements += count * plan.layers;
    if (*elements > kMost) return KVL_SIZE;
    int32_t wrong = check_op(plane);
    const auto check = [&](const kvl_side& side, const kvl_view& view, int64_t itemsize, int64_t kvl_axis::* stride,
                           int64_t dims, std::vector<kvl_span>* to) {
        if (!wrong) wrong = check_side(plan, plane, side, view, itemsize, stride, dims, to);
    };
    check(plane.source, plan.source, type_bytes(plane.source_type), &kvl_axis::source, plane.dims, &touched->read);
    check(plane.target, plan.target, type_bytes(plane.target_type), &kvl_axis::target, plane.dims, &touched->written);
    if (plane.op == KVL_COPY) return wrong;  // scales aren't looked at
    if (plane.source_scale.base) check(plane.source_scale, plan.source, 4, &kvl_axis::source, 0, &touched->read);
    if (plane.target_scale.base)
        check(plane.target_scale, plan.target, 4, &kvl_axis::target, 0,
              plane.op == KVL_QUANTISE ? &touched->written : &touched->read);
    return wrong;
}

}  // namespace

int32_t check_plan(const kvl_plan* plan) {
    if (!plan) return KVL_NULL;
    if (plan->threads < 1 || plan->threads > 1024 || plan->stream_bytes < 0) return KVL_SIZE;
    if (!counts(plan->tokens, 0) || !counts(plan->heads, 1) || !counts(plan->layers, 1) || !counts(plan->planes, 1) ||
        plan->layers > kMostLayers || plan->planes > kMostPlanes)
        return KVL_SIZE;
    int32_t wrong = check_view(plan->source, plan->tokens);
    if (!wrong) wrong = check_view(plan->target, plan->tokens);
    if (wrong) return wrong;
    if (!plan->plane) return KVL_NULL;
    Touched touched;
    __int128 elements = 0;
    for (int64_t i = 0; i < plan->planes; ++i) {
        wrong = check_plane(*plan, plan->plane[i], &touched, &elements);
        if (wrong) return wrong;
    }
    if (overlap(touched.read, touched.written)) return KVL_OVERLAP;
    return check_distinct(plan->target, plan->tokens);
}

}  // namespace kvl
