#include "pass.h"

#include <algorithm>
#include <cstdlib>

#include "planes.h"

namespace kvl {
namespace {

// Rows are copied in pieces of about so many bytes: what is fetched ahead of a piece is then near, in the first-level
// cache, and begins with the first line of the next block when that is due.
constexpr int64_t kGrainBytes = 2 << 10;
constexpr int64_t kAheadBytes = 4 << 10;  // the source is fetched about so far ahead of the copy
constexpr int64_t kMostAhead = 16;        // in pieces

// Tokens of a group, and the block in which they begin.
struct Range {
    int64_t source_block, first, last;
};

}  // namespace

Pass::Pass(const kvl_plan& plan, std::vector<Part> parts, const Table& source, const Table& target, int64_t first,
           int64_t last)
    : plan_(plan), parts_(std::move(parts)) {
    if (parts_[0].staging.tokens) {
        memory_.resize(static_cast<size_t>(parts_[0].staging.bytes) + 64);
        stage_ = (reinterpret_cast<uint64_t>(memory_.data()) + 63) & ~uint64_t{63};
        add_staged_groups(source, target, first, last);
    } else {
        add_groups(source, target, first, last);
        groups_together_ = order().groups_innermost();
    }
    set_ahead(last - first);
}

void Pass::begin_group() {
    for (Part& part : parts_) {
        part.begins.push_back(part.ways[0].size());
        part.unstage.push_back(part.ways.back().size());
    }
    ++groups_;
}

// A group for each block of the source.
void Pass::add_groups(const Table& source, const Table& target, int64_t first, int64_t last) {
    // What is fetched ahead of a piece is another piece, so that those of all parts should be alike: if one changes the
    // places of elements, which wants its tokens together, those of rows stay whole too.
    const int64_t typical = std::min(source.typical, target.typical);
    const auto transposes = [&](const Part& part) { return part.ways[0].nest_of(typical).transposes(); };
    int64_t most = INT64_MAX;
    if (std::none_of(parts_.begin(), parts_.end(), transposes))
        most = std::max<int64_t>(1, kGrainBytes / parts_[0].ways[0].token_bytes());
    std::vector<Run> runs = find_runs(source, target, first, last);
    sort_by_source(&runs);
    for (size_t i = 0; i < runs.size(); ++i) {
        if (i == 0 || runs[i].source_block != runs[i - 1].source_block) begin_group();
        for (Part& part : parts_) part.ways[0].add(runs[i], most);
    }
    begin_group();
    --groups_;
}

// A group for each block of the side that has the larger ones, or for as much of it as can be staged.
void Pass::add_staged_groups(const Table& source, const Table& target, int64_t first, int64_t last) {
    Part& part = parts_[0];
    const int64_t most = part.staging.tokens;
    const Table& larger = target.typical > source.typical ? target : source;
    std::vector<Range> ranges;
    for (int64_t t = first; t < last; t = ranges.back().last) {
        const int64_t p = larger.view.start + t, at = larger.adjoins ? p : p % larger.view.page;
        int64_t tokens = std::min(last - t, most - at % most);
        if (!larger.adjoins) tokens = std::min(tokens, larger.view.page - at);
        ranges.push_back({source.view.table[(source.view.start + t) / source.view.page], t, t + tokens});
    }
    std::stable_sort(ranges.begin(), ranges.end(),
                     [](const Range& a, const Range& b) { return a.source_block < b.source_block; });
    const int64_t only = 0;
    for (const Range& range : ranges) {
        begin_group();
        const Table stage{{&only, 1, 1, most, -range.first, nullptr, 0}, false, most};
        std::vector<Run> runs = find_runs(source, stage, range.first, range.last);
        sort_by_source(&runs);
        for (const Run& run : runs) part.ways[0].add(run, INT64_MAX);
        for (const Run& run : find_runs(stage, target, range.first, range.last)) part.ways[1].add(run, INT64_MAX);
    }
    begin_group();
    --groups_;
}

// Fetched ahead is a piece of another part only if those are all of a range of memory: else a multiple of the parts.
void Pass::set_ahead(int64_t tokens) {
    const Places& places = parts_[0].ways[0];
    const int64_t piece = tokens * places.token_bytes() / static_cast<int64_t>(places.size());
    ahead_ = static_cast<size_t>(std::min(kMostAhead, kAheadBytes / std::max<int64_t>(piece, 1) + 1));
    const auto dense = [](const Part& part) { return part.ways[0].dense(part.ways[0][0]); };
    if (!std::all_of(parts_.begin(), parts_.end(), dense))
        ahead_ = (ahead_ + parts_.size() - 1) / parts_.size() * parts_.size();
}

Visits Pass::order() const {
    const Part& part = parts_[0];
    const kvl_side& side = part.plane->source;
    const auto step = [](bool several, uint64_t a, uint64_t b) { return several ? std::llabs(distance(a, b)) : 0; };
    const size_t parts = parts_.size();
    const int64_t groups = groups_together_ ? 1 : static_cast<int64_t>(groups_);
    const int64_t layer_step = step(plan_.layers > 1, side.base[0], side.base[plan_.layers > 1]);
    const int64_t part_step = step(parts > 1, side.base[0], parts_[parts > 1].plane->source.base[0]);
    // Groups of a staged part may be many in one block.
    const bool within = part.staging.tokens && plan_.source.page > part.staging.tokens;
    const int64_t group_step = within ? std::min(side.block, part.staging.tokens * side.token) : side.block;
    return Visits({plan_.layers, static_cast<int64_t>(parts), groups, part.heads},
                  {layer_step, part_step, group_step, side.head});
}

void Pass::run() {
    Cursor here(*this), ahead(*this);
    ahead.next_visit();
    ahead.skip(ahead_);
    while (here.next_visit()) {
        const Part& part = *here.part;
        copy_pieces(here, part.staging.tokens ? stage_ : here.target, &ahead);
        if (!part.staging.tokens) continue;
        const Places& places = part.ways[1];
        for (size_t i = part.unstage[here.group]; i < part.unstage[here.group + 1]; ++i)
            places.nest(places[i]).run(reinterpret_cast<char*>(here.target + static_cast<uint64_t>(places[i].target)),
                                       reinterpret_cast<char*>(stage_ + static_cast<uint64_t>(places[i].source)), 0);
    }
}

void Pass::copy_pieces(const Cursor& here, uint64_t target, Cursor* ahead) const {
    const auto at = [](uint64_t address) { return reinterpret_cast<char*>(address); };
    const Places& places = here.places();
    for (size_t i = here.piece, next; i < here.end; ahead->skip(next - i), i = next) {
        const Place& place = places[i];
        next = i + 1;
        if (places.nest(place).together() && here.end - i > ahead_) {
            while (next < here.end - ahead_ && places[next].form == place.form) ++next;
            places.nest(place).run_all(at(target), at(here.source), &place, next - i, ahead_);
            continue;
        }
        const uint64_t from = here.source + static_cast<uint64_t>(place.source);
        const bool alike = ahead->part == here.part || (places.dense(place) && ahead->places().dense(ahead->place()));
        places.nest(place).run(at(target + static_cast<uint64_t>(place.target)), at(from),
                               alike ? distance(from, ahead->address()) : 0);
    }
}

Pass::Cursor::Cursor(const Pass& pass) : pass_(pass), visits_(pass.order()) {}

bool Pass::Cursor::next_visit() {
    if (!visits_.next()) return false;
    part = &pass_.parts_[static_cast<size_t>(visits_[Visits::kPart])];
    const kvl_side &from = part->plane->source, &to = part->plane->target;
    const int64_t layer = visits_[Visits::kLayer], head = visits_[Visits::kHead];
    source = from.base[layer] + static_cast<uint64_t>(head * from.head);
    target = to.base[layer] + static_cast<uint64_t>(head * to.head);
    group = static_cast<size_t>(visits_[Visits::kGroup]);
    piece = part->begins[group];
    end = pass_.groups_together_ ? places().size() : part->begins[group + 1];
    return true;
}

void Pass::Cursor::skip(size_t pieces) {
    while (pieces) {
        const size_t step = std::min(pieces, end - piece);
        piece += step;
        pieces -= step;
        if (piece < end) return;
        if (!next_visit()) {
            --piece;
            return;
        }
    }
}

}  // namespace kvl
