#include "runs.h"

namespace kvl {
namespace {

// Whether a block's last token is followed by the next block's first one, in all planes that have one for each token.
bool blocks_adjoin(const kvl_plan& plan, int64_t page, const kvl_side kvl_plane::* member) {
    for (int64_t i = 0; i < plan.planes; ++i) {
        const kvl_side& side = plan.plane[i].*member;
        if (plan.plane[i].once) continue;
        if (side.tile_tokens && page % side.tile_tokens) return false;
        const int64_t bytes = side.tile_tokens ? page / side.tile_tokens * side.tile : page * side.token;
        if (side.block != bytes) return false;
    }
    return true;
}

// How many tokens from position p on lie in one piece, at most `most`.
int64_t piece(const kvl_view& view, bool adjoins, int64_t p, int64_t most) {
    int64_t n = view.page - p % view.page;
    while (adjoins && n < most && view.table[(p + n) / view.page] == view.table[(p + n) / view.page - 1] + 1)
        n += view.page;
    return n < most ? n : most;
}

}  // namespace

std::vector<Run> find_runs(const kvl_plan& plan, int64_t first, int64_t last) {
    const kvl_view &source = plan.source, &target = plan.target;
    const bool source_adjoins = blocks_adjoin(plan, source.page, &kvl_plane::source);
    const bool target_adjoins = blocks_adjoin(plan, target.page, &kvl_plane::target);
    std::vector<Run> runs;
    for (int64_t t = first; t < last;) {
        const int64_t s = source.start + t, d = target.start + t;
        const int64_t n = piece(target, target_adjoins, d, piece(source, source_adjoins, s, last - t));
        runs.push_back(
            {source.table[s / source.page], s % source.page, target.table[d / target.page], d % target.page, n});
        t += n;
    }
    return runs;
}

}  // namespace kvl
