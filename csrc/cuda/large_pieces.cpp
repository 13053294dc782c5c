#include "large_pieces.h"

#include <algorithm>
#include <utility>

#include "../runs.h"
#include "../types.h"

namespace kvl {
namespace {

// What is smaller, or in more pieces, before neighbours are joined, is left to kernels.
constexpr int64_t kFewestBytes = 256;
constexpr size_t kMostPieces = size_t{1} << 16;

// Which span of a side an address is in.
size_t span_of(const kvl_view& view, uint64_t address) {
    const auto* end = view.span + view.spans;
    return static_cast<size_t>(
        std::upper_bound(view.span, end, address, [](uint64_t one, const kvl_span& span) { return one < span.begin; }) -
        view.span);
}

// Joins those that follow each other on both sides. No two are in the same place of the target.
std::vector<Piece> joined(const kvl_plan& plan, std::vector<Piece> pieces) {
    std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.target < b.target; });
    std::vector<Piece> result;
    for (const Piece& piece : pieces) {
        Piece* last = result.empty() ? nullptr : &result.back();
        const auto adjoins = [&](uint64_t Piece::* side, const kvl_view& view) {
            return last->*side + last->bytes == piece.*side && span_of(view, last->*side) == span_of(view, piece.*side);
        };
        if (last && adjoins(&Piece::source, plan.source) && adjoins(&Piece::target, plan.target))
            last->bytes += piece.bytes;
        else
            result.push_back(piece);
    }
    return result;
}

// Adds a plane's pieces; false if they are too small or too many.
bool add_plane(const kvl_plan& plan, const kvl_plane& plane, const std::vector<Run>& runs, int64_t least_bytes,
               std::vector<Piece>* pieces) {
    if (plane.op != KVL_COPY || plane.once || plane.source.tile_tokens || plane.target.tile_tokens) return false;
    std::vector<kvl_axis> axes(plane.dim, plane.dim + plane.dims);
    axes.push_back({plane.heads, plane.source.head, plane.target.head});
    int64_t unit = type_bytes(plane.source_type), apart = 1;
    const auto next = [&](const kvl_axis& axis) {
        return axis.size == 1 || (axis.source == unit && axis.target == unit);
    };
    for (auto it = axes.begin(); (it = std::find_if(axes.begin(), axes.end(), next)) != axes.end(); axes.erase(it))
        unit *= it->size;
    const bool joined = plane.source.token == unit && plane.target.token == unit;
    for (const kvl_axis& axis : axes) apart *= axis.size;
    for (const Run& run : runs) {
        const int64_t bytes = joined ? run.tokens * unit : unit, count = joined ? 1 : run.tokens;
        if (bytes < least_bytes) return false;
        if (pieces->size() + static_cast<size_t>(plan.layers) * count * apart > kMostPieces) return false;
        for (int64_t layer = 0; layer < plan.layers; ++layer)
            for (int64_t t = 0; t < count; ++t)
                for (int64_t i = 0; i < apart; ++i) {
                    const auto place = [&](const kvl_side& side, int64_t block, int64_t token,
                                           int64_t kvl_axis::* stride) {
                        int64_t offset = block * side.block + (token + t) * side.token, rest = i;
                        for (const kvl_axis& axis : axes) {
                            offset += rest % axis.size * axis.*stride;
                            rest /= axis.size;
                        }
                        return side.base[layer] + static_cast<uint64_t>(offset);
                    };
                    pieces->push_back({place(plane.source, run.source_block, run.source_token, &kvl_axis::source),
                                       place(plane.target, run.target_block, run.target_token, &kvl_axis::target),
                                       static_cast<uint64_t>(bytes)});
                }
    }
    return true;
}

}  // namespace

std::vector<Piece> find_large_pieces(const kvl_plan& plan, int64_t least_bytes) {
    std::vector<Piece> pieces;
    const std::vector<Run> runs = find_runs(plan, 0, plan.tokens);
    for (int64_t i = 0; i < plan.planes; ++i)
        if (!add_plane(plan, plan.plane[i], runs, std::min(least_bytes, kFewestBytes), &pieces)) return {};
    pieces = joined(plan, std::move(pieces));
    const auto small = [&](const Piece& piece) { return piece.bytes < static_cast<uint64_t>(least_bytes); };
    if (std::any_of(pieces.begin(), pieces.end(), small)) return {};
    return pieces;
}

}  // namespace kvl
