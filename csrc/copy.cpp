// Runs are visited in the order in which the source lies in memory: reading on is what memory does best, while writes
// past the cache cost about the same anywhere.
#include "copy.h"

#include <algorithm>
#include <cstdlib>

namespace kvl {
namespace {

constexpr int64_t kAheadBytes = 8 << 10;  // memory is fetched so far ahead of the copy, at least

int64_t distance(uint64_t from, uint64_t to) { return static_cast<int64_t>(to - from); }

// How many planes from `plane` on are visited together, as an axis of the nest: two that have the same strides, lie at
// the same distance in every layer, and share blocks on one side, so that apart they would take each block twice.
int64_t woven_planes(const kvl_plane* plane, const kvl_plane* end, int64_t layers) {
    if (plane + 1 >= end) return 1;
    const kvl_plane &a = plane[0], &b = plane[1];
    const auto same = [](const kvl_side& x, const kvl_side& y) {
        return x.block == y.block && x.head == y.head && x.token == y.token && x.dim == y.dim;
    };
    if (a.width != b.width || !same(a.source, b.source) || !same(a.target, b.target)) return 1;
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
    : plan_(plan), kernels_(kernels), stream_(stream), runs_(find_runs(plan, first, last)) {
    // Heads that lie outside tokens are visited one by one, all runs of a source block at a time.
    const kvl_side& side = plan.plane[0].source;
    by_head_ = plan.heads > 1 && side.head > side.token;
    for (size_t i = 0; i < runs_.size(); ++i)
        if (i == 0 || !by_head_ || runs_[i].source_block != runs_[i - 1].source_block) groups_.push_back(i);
    const kvl_plane* end = plan.plane + plan.planes;
    for (const kvl_plane* plane = plan.plane; plane < end; plane += parts_.back().planes) {
        parts_.push_back({plane, woven_planes(plane, end, plan.layers), {}, {}});
        fill(&parts_.back(), kernels, stream);
    }
    const int64_t tokens = (last - first) / static_cast<int64_t>(runs_.size());  // of an average run
    const int64_t bytes = tokens * plan.plane[0].width * plan.itemsize * (by_head_ ? 1 : plan.heads);
    ahead_ = static_cast<int>(std::min<int64_t>(kMostAhead, kAheadBytes / bytes + 1));
}

void Copy::run() {
    // Four loops over groups of runs, parts, layers and heads, the one with the source's widest step outermost.
    enum { kGroup, kPart, kLayer, kHead, kLoops };
    struct Loop {
        int which;
        int64_t size, step;
    };
    const kvl_side& side = plan_.plane[0].source;
    const auto part = [&](size_t i) { return parts_[i].plane->source.base[0]; };
    Loop loops[kLoops] = {
        {kLayer, plan_.layers, plan_.layers > 1 ? std::llabs(distance(side.base[0], side.base[1])) : 0},
        {kPart, static_cast<int64_t>(parts_.size()), parts_.size() > 1 ? std::llabs(distance(part(0), part(1))) : 0},
        {kGroup, static_cast<int64_t>(groups_.size()), side.block},
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

void Copy::fill(Part* part, const Kernels& kernels, bool stream) {
    const kvl_plane& plane = *part->plane;
    const kvl_side &s = plane.source, &t = plane.target;
    const bool woven = part->planes > 1;
    const kvl_plane& other = part->plane[woven ? 1 : 0];
    const int64_t heads = by_head_ ? 1 : plan_.heads;
    part->nest.reserve(runs_.size());
    int64_t tokens = 0;
    for (const Run& run : runs_) {
        if (run.tokens != tokens) {
            tokens = run.tokens;
            const Axis axes[] = {
                {part->planes, distance(s.base[0], other.source.base[0]), distance(t.base[0], other.target.base[0])},
                {heads, s.head, t.head},
                {tokens, s.token, t.token},
                {plane.width, s.dim, t.dim}};
            part->nests.emplace_back(axes, plan_.itemsize, kernels, stream);
        }
        part->nest.push_back(part->nests.size() - 1);
    }
}

void Copy::visit(const Part& part, size_t group, int64_t layer, int64_t head) {
    const kvl_side &s = part.plane->source, &t = part.plane->target;
    const uint64_t source = s.base[layer] + static_cast<uint64_t>(head * s.head);
    const uint64_t target = t.base[layer] + static_cast<uint64_t>(head * t.head);
    const size_t end = group + 1 < groups_.size() ? groups_[group + 1] : runs_.size();
    for (size_t i = groups_[group]; i < end; ++i) {
        const Run& run = runs_[i];
        push({&part.nests[part.nest[i]],
              target + static_cast<uint64_t>(run.target_block * t.block + run.target_token * t.token),
              source + static_cast<uint64_t>(run.source_block * s.block + run.source_token * s.token)});
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
