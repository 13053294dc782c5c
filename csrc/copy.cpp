// Runs are visited in the order in which the source lies in memory: reading on is what memory does best, while writes
// past the cache cost about the same anywhere.
#include "copy.h"

#include <algorithm>
#include <cstdlib>

#include "pieces.h"
#include "types.h"

namespace kvl {
namespace {

constexpr int64_t kAheadBytes = 8 << 10;  // memory is fetched so far ahead of the copy, at least

int64_t distance(uint64_t from, uint64_t to) { return static_cast<int64_t>(to - from); }

bool is_copied(const kvl_plane& plane) { return !plane.once && (plane.op == KVL_COPY || plane.op == KVL_COPY_EQUAL); }

int64_t row_bytes(const kvl_plane& plane) {
    int64_t bytes = type_bytes(plane.source_type);
    for (int64_t i = 0; i < plane.dims; ++i) bytes *= plane.dim[i].size;
    return bytes;
}

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

// How many planes from `plane` on are visited together, as an axis of the nest: two that are alike, lie at the same
// distance in every layer, and share blocks on one side, so that apart they would take each block twice.
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

}  // namespace

Copy::Copy(const kvl_plan& plan, const Kernels& kernels, bool stream, int64_t first, int64_t last)
    : plan_(plan), kernels_(kernels), stream_(stream) {
    const kvl_plane* end = plan.plane + plan.planes;
    for (const kvl_plane* plane = plan.plane; plane < end; ++plane) {
        if (!is_copied(*plane)) continue;
        parts_.push_back({plane, woven_planes(plane, end, plan.layers), {}, {}, {}});
        plane += parts_.back().planes - 1;
    }
    if (parts_.empty()) return;
    // Heads that lie outside tokens are visited one by one, all runs of a source block at a time.
    const kvl_plane& plane = *parts_[0].plane;
    by_head_ = plane.heads > 1 && plane.source.head > plane.source.token && plane.source.head > plane.source.tile;
    std::vector<Run> runs = find_runs(plan, first, last);
    // In the order in which they lie in the source: a table's blocks may be in any, backwards as well.
    const auto before = [](const Run& a, const Run& b) {
        return a.source_block != b.source_block ? a.source_block < b.source_block : a.source_token < b.source_token;
    };
    if (!std::is_sorted(runs.begin(), runs.end(), before)) std::sort(runs.begin(), runs.end(), before);
    for (Part& part : parts_) fill(&part, runs);
    const int64_t tokens = (last - first) / static_cast<int64_t>(runs.size());  // of an average run
    const int64_t bytes = tokens * row_bytes(plane) * (by_head_ ? 1 : plane.heads);
    ahead_ = static_cast<int>(std::min<int64_t>(kMostAhead, kAheadBytes / bytes + 1));
}

void Copy::fill(Part* part, const std::vector<Run>& runs) {
    const kvl_plane &plane = *part->plane, &other = part->plane[part->planes - 1];
    Axis axes[Nest::kAxes] = {{part->planes, distance(plane.source.base[0], other.source.base[0]),
                               distance(plane.target.base[0], other.target.base[0])},
                              {by_head_ ? 1 : plane.heads, plane.source.head, plane.target.head}};
    Axis* const tokens = axes + 2;
    Axis* const dims = tokens + Piece::kAxes;
    for (int64_t i = 0; i < plane.dims; ++i) dims[i] = {plane.dim[i].size, plane.dim[i].source, plane.dim[i].target};
    const int count = static_cast<int>(dims + plane.dims - axes);
    // Pieces of one form share a nest. There are few forms, and mostly a piece has that of the one before it.
    std::vector<Piece> forms;
    const auto same_form = [](const Piece& a, const Piece& b) {
        return std::equal(a.axis, a.axis + Piece::kAxes, b.axis, [](const Axis& x, const Axis& y) {
            return x.size == y.size && x.source == y.source && x.target == y.target;
        });
    };
    part->places.reserve(runs.size());
    for (size_t i = 0; i < runs.size(); ++i) {
        if (i == 0 || !by_head_ || runs[i].source_block != runs[i - 1].source_block)
            part->groups.push_back(part->places.size());
        Pieces pieces(runs[i], plane.source, plane.target);
        for (Piece piece; pieces.next(&piece);) {
            const auto known =
                std::find_if(forms.rbegin(), forms.rend(), [&](const Piece& form) { return same_form(form, piece); });
            size_t nest = static_cast<size_t>(forms.rend() - known) - 1;
            if (known == forms.rend()) {
                nest = forms.size();
                forms.push_back(piece);
                std::copy(piece.axis, piece.axis + Piece::kAxes, tokens);
                part->nests.emplace_back(axes, count, type_bytes(plane.source_type), kernels_, stream_);
            }
            part->places.push_back({piece.source, piece.target, nest});
        }
    }
    part->groups.push_back(part->places.size());
}

void Copy::run() {
    if (parts_.empty()) return;
    // Four loops over groups of runs, parts, layers and heads, the one with the source's widest step outermost.
    enum { kGroup, kPart, kLayer, kHead, kLoops };
    struct Loop {
        int which;
        int64_t size, step;
    };
    const kvl_plane& plane = *parts_[0].plane;
    const kvl_side& side = plane.source;
    const auto part = [&](size_t i) { return parts_[i].plane->source.base[0]; };
    Loop loops[kLoops] = {
        {kLayer, plan_.layers, plan_.layers > 1 ? std::llabs(distance(side.base[0], side.base[1])) : 0},
        {kPart, static_cast<int64_t>(parts_.size()), parts_.size() > 1 ? std::llabs(distance(part(0), part(1))) : 0},
        {kGroup, static_cast<int64_t>(parts_[0].groups.size()) - 1, side.block},
        {kHead, by_head_ ? plan_.heads : 1, side.head},
    };
    std::stable_sort(loops, loops + kLoops, [](const Loop& a, const Loop& b) { return a.step > b.step; });
    int64_t at[kLoops];
    for (at[loops[0].which] = 0; at[loops[0].which] < loops[0].size; ++at[loops[0].which])
        for (at[loops[1].which] = 0; at[loops[1].which] < loops[1].size; ++at[loops[1].which])
            for (at[loops[2].which] = 0; at[loops[2].which] < loops[2].size; ++at[loops[2].which])
                for (at[loops[3].which] = 0; at[loops[3].which] < loops[3].size; ++at[loops[3].which])
                    visit(parts_[static_cast<size_t>(at[kPart])], static_cast<size_t>(at[kGroup]), at[kLayer],
                          at[kHead]);
    for (; waiting_; --waiting_) execute(ring_[(next_ + kMostAhead - waiting_) % kMostAhead], kAheadBytes);
    if (stream_) kernels_.fence();
}

void Copy::visit(const Part& part, size_t group, int64_t layer, int64_t head) {
    if (head >= part.plane->heads) return;  // a plane without heads beside one with
    const kvl_side &s = part.plane->source, &t = part.plane->target;
    const uint64_t source = s.base[layer] + static_cast<uint64_t>(head * s.head);
    const uint64_t target = t.base[layer] + static_cast<uint64_t>(head * t.head);
    for (size_t i = part.groups[group]; i < part.groups[group + 1]; ++i) {
        const Place& place = part.places[i];
        push({&part.nests[place.nest], target + static_cast<uint64_t>(place.target),
              source + static_cast<uint64_t>(place.source)});
    }
}

// Items wait until it is known what comes some items later, which is fetched while they are copied.
void Copy::push(const Item& item) {
    if (waiting_ == ahead_) {
        const Item& first = ring_[(next_ + kMostAhead - waiting_) % kMostAhead];
        execute(first, distance(first.source, item.source));
        --waiting_;
    }
    ring_[next_] = item;
    next_ = (next_ + 1) % kMostAhead;
    ++waiting_;
}

void Copy::execute(const Item& item, int64_t ahead) {
    item.nest->run(reinterpret_cast<char*>(item.target), reinterpret_cast<const char*>(item.source), ahead);
}

}  // namespace kvl
