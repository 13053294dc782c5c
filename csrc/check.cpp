#include "check.h"

#include <initializer_list>

namespace kvl {
namespace {

constexpr int64_t kMost = int64_t{1} << 40;  // of anything that is counted: beyond it a number is garbage

bool counts(int64_t value, int64_t least) { return value >= least && value <= kMost; }

int32_t check_tokens(const kvl_tokens& side, int64_t tokens) {
    if (!counts(side.entries, 0) || !counts(side.blocks, 1) || !counts(side.page, 1) || !counts(side.start, 0))
        return KVL_SIZE;
    if (tokens == 0) return KVL_OK;
    if (!side.table) return KVL_NULL;
    const int64_t first = side.start / side.page, last = (side.start + tokens - 1) / side.page;
    if (last >= side.entries) return KVL_TABLE;
    for (int64_t i = first; i <= last; ++i)
        if (side.table[i] < 0 || side.table[i] >= side.blocks) return KVL_TABLE;
    return KVL_OK;
}

// Adds the bytes from an axis' first to its last element; false if the sum leaves the address space.
bool reach(int64_t size, int64_t stride, int64_t* sum) {
    int64_t bytes = 0;
    return !__builtin_mul_overflow(size - 1, stride, &bytes) && !__builtin_add_overflow(*sum, bytes, sum);
}

int32_t check_side(const kvl_plan& plan, const kvl_side& side, const kvl_tokens& tokens, int64_t width) {
    if (!side.base) return KVL_NULL;
    for (const int64_t stride : {side.block, side.head, side.token, side.dim})
        if (stride < 0 || stride % plan.itemsize) return KVL_STRIDE;
    int64_t last = plan.itemsize - 1;
    if (!reach(tokens.blocks, side.block, &last) || !reach(plan.heads, side.head, &last) ||
        !reach(tokens.page, side.token, &last) || !reach(width, side.dim, &last))
        return KVL_STRIDE;
    for (int64_t layer = 0; layer < plan.layers; ++layer) {
        const uint64_t base = side.base[layer];
        if (!base) return KVL_NULL;
        if (base % static_cast<uint64_t>(plan.itemsize) || base + static_cast<uint64_t>(last) < base) return KVL_STRIDE;
    }
    return KVL_OK;
}

}  // namespace

int32_t check_plan(const kvl_plan* plan) {
    if (!plan) return KVL_NULL;
    if (plan->itemsize != 2 && plan->itemsize != 4) return KVL_SIZE;
    if (plan->threads < 1 || plan->threads > 1024 || plan->reserved != 0 || plan->stream_bytes < 0) return KVL_SIZE;
    if (!counts(plan->tokens, 0) || !counts(plan->heads, 1) || !counts(plan->layers, 1) || !counts(plan->planes, 1))
        return KVL_SIZE;
    int32_t wrong = check_tokens(plan->source, plan->tokens);
    if (!wrong) wrong = check_tokens(plan->target, plan->tokens);
    if (wrong) return wrong;
    if (!plan->plane) return KVL_NULL;
    __int128 bytes = 0;
    for (int64_t i = 0; i < plan->planes; ++i) {
        const kvl_plane& plane = plan->plane[i];
        if (!counts(plane.width, 1)) return KVL_SIZE;
        wrong = check_side(*plan, plane.source, plan->source, plane.width);
        if (!wrong) wrong = check_side(*plan, plane.target, plan->target, plane.width);
        if (wrong) return wrong;
        bytes += static_cast<__int128>(plan->tokens) * plan->heads * plane.width;
        if (bytes > kMost || bytes * plan->layers * plan->itemsize > kMost) return KVL_SIZE;
    }
    return KVL_OK;
}

}  // namespace kvl
