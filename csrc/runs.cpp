#include "runs.h"

#include <algorithm>

namespace kvl {
namespace {

// How many tokens from position p on lie in one piece, at most `most`.
int64_t piece(const Table& side, int64_t p, int64_t most) {
    const int64_t page = side.view.page, *table = side.view.table;
    int64_t n = page - p % page;
    while (side.adjoins && n < most && table[(p + n) / page] == table[(p + n) / page - 1] + 1) n += page;
    return std::min(n, most);
}

Table find_table(const kvl_plan& plan, const kvl_view& view, const kvl_side kvl_plane::* member, int64_t first,
                 int64_t last) {
    Table table{view, true, view.page};
    for (const kvl_plane* plane = plan.plane; plane < plan.plane + plan.planes; ++plane) {
        if (plane->once) continue;  // such a plane has nothing for a token
        const kvl_side& side = plane->*member;
        const bool tiles = side.tile_tokens;
        table.adjoins &= side.block == (tiles ? view.page / side.tile_tokens * side.tile : view.page * side.token);
        table.adjoins &= !tiles || view.page % side.tile_tokens == 0;
    }
    if (!table.adjoins) return table;
    int64_t pieces = 0;
    for (int64_t t = first; t < last; ++pieces) t += piece(table, view.start + t, last - t);
    table.typical = (last - first) / std::max<int64_t>(1, pieces);
    return table;
}

}  // namespace

Table source_table(const kvl_plan& plan, int64_t first, int64_t last) {
    return find_table(plan, plan.source, &kvl_plane::source, first, last);
}

Table target_table(const kvl_plan& plan, int64_t first, int64_t last) {
    return find_table(plan, plan.target, &kvl_plane::target, first, last);
}

std::vector<Run> find_runs(const Table& source, const Table& target, int64_t first, int64_t last) {
    const kvl_view &from = source.view, &to = target.view;
    std::vector<Run> runs;
    for (int64_t t = first; t < last;) {
        const int64_t s = from.start + t, d = to.start + t;
        const int64_t n = piece(target, d, piece(source, s, last - t));
        runs.push_back({from.table[s / from.page], s % from.page, to.table[d / to.page], d % to.page, n});
        t += n;
    }
    return runs;
}

std::vector<Run> find_runs(const kvl_plan& plan, int64_t first, int64_t last) {
    return find_runs(source_table(plan, first, last), target_table(plan, first, last), first, last);
}

void sort_by_source(std::vector<Run>* runs) {
    const auto before = [](const Run& a, const Run& b) { return a.source_block < b.source_block; };
    // Runs of one block keep their order: they may have come from different places of a table that names it twice.
    if (!std::is_sorted(runs->begin(), runs->end(), before)) std::stable_sort(runs->begin(), runs->end(), before);
}

}  // namespace kvl
