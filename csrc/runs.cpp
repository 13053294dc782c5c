#include "runs.h"

namespace kvl {
namespace {

// Whether a block's last token is followed by the next block's first one, in all planes.
bool blocks_adjoin(const kvl_plan& plan, const kvl_tokens& tokens, const kvl_side kvl_plane::* side) {
    for (int64_t i = 0; i < plan.planes; ++i)
        if ((plan.plane[i].*side).block != tokens.page * (plan.plane[i].*side).token) return false;
    return true;
}

// How many tokens from position p on lie in one piece, at most `most`.
int64_t piece(const kvl_tokens& side, bool adjoins, int64_t p, int64_t most) {
    int64_t n = side.page - p % side.page;
    while (adjoins && n < most && side.table[(p + n) / side.page] == side.table[(p + n) / side.page - 1] + 1)
        n += side.page;
    return n < most ? n : most;
}

}  // namespace

std::vector<Run> find_runs(const kvl_plan& plan, int64_t first, int64_t last) {
    const kvl_tokens &source = plan.source, &target = plan.target;
    const bool source_adjoins = blocks_adjoin(plan, source, &kvl_plane::source);
    const bool target_adjoins = blocks_adjoin(plan, target, &kvl_plane::target);
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
