#include "cast.h"

#include <algorithm>
#include <cstdlib>

#include "cast_environment.h"
#include "pieces.h"
#include "runs.h"
#include "types.h"

namespace kvl {
namespace {

constexpr int64_t kBlockBytes = 8 << 10;  // of the wider side of a block: the narrower one and what is fetched fit too
constexpr int64_t kTransposedBytes = 16 << 10;  // where tokens should be many, to fill lines across
constexpr int64_t kAheadBytes = 8 << 10;        // memory is fetched so far ahead of its cast, at least

bool is_cast(const kvl_plane& plane) { return !plane.once && (plane.op == KVL_CAST || plane.op == KVL_QUANTISE); }

}  // namespace

Cast::Part::Part(const kvl_plan& plan, const kvl_plane& plane, const Kernels& kernels, int64_t first, int64_t last)
    : plane(&plane),
      row(plane),
      factors(plan, plane, find_cast_kernels(kernels), first, last),
      by_head(plane.source.head > plane.source.token) {}

Cast::Cast(const kvl_plan& plan, const Kernels& kernels, bool stream, int64_t first, int64_t last)
    : plan_(plan), kernels_(kernels), stream_(stream) {
    for (const kvl_plane* plane = plan.plane; plane < plan.plane + plan.planes; ++plane) {
        if (!is_cast(*plane)) continue;
        parts_.emplace_back(plan, *plane, kernels, first, last);
        cut(&parts_.back(), first, last, stream);
    }
}

// Cuts a part into blocks.
void Cast::cut(Part* part, int64_t first, int64_t last, bool stream) {
    int64_t token = 0;
    for (const Run& run : find_runs(plan_, first, last)) {
        Pieces pieces(run, part->plane->source, part->plane->target);
        for (Piece piece; pieces.next(&piece);) {
            const Axis &x = piece.axis[0], &y = piece.axis[1], &z = piece.axis[2];
            for (int64_t i = 0; i < x.size; ++i)
                for (int64_t j = 0; j < y.size; ++j, token += z.size)
                    add_blocks(part, token, z, piece.source + i * x.source + j * y.source,
                               piece.target + i * x.target + j * y.target, stream);
        }
    }
    int64_t source = 0, target = 0, rows = 1;
    for (const CastForm& form : part->forms) {
        source = std::max(source, form.source_scratch());
        target = std::max(target, form.target_scratch());
        rows = std::max(rows, form.tokens() * form.heads());
    }
    const auto room = [](std::vector<Line>* scratch, int64_t bytes) {
        scratch->resize(std::max(scratch->size(), static_cast<size_t>(bytes + 63) / sizeof(Line)));
    };
    room(&source_scratch_, source);
    room(&target_scratch_, target);
    part->factors.reserve(rows);
    const int64_t all = (last - first) * part->plane->heads * part->row.source_bytes;
    part->ahead = static_cast<size_t>(kAheadBytes / (all / static_cast<int64_t>(part->blocks.size()) + 1) + 1);
}

// Cuts tokens at a fixed step, and the heads, into blocks: as much of what is faster in the source as there is, or goes
// in, then of the other.
void Cast::add_blocks(Part* part, int64_t token, const Axis& tokens, int64_t source, int64_t target, bool stream) {
    const kvl_plane& plane = *part->plane;
    const CastRow& row = part->row;
    const bool dense = row.dense_source && row.dense_target;
    const int64_t bytes = std::max(row.source_bytes, row.target_bytes);
    const int64_t rows = std::max<int64_t>(1, (dense ? kBlockBytes : kTransposedBytes) / bytes);
    const int64_t inner = part->by_head ? tokens.size : plane.heads, outer = part->by_head ? plane.heads : tokens.size;
    const int64_t inner_step = std::min(inner, rows);
    const int64_t outer_step = inner_step == inner ? std::min(outer, rows / inner) : 1;
    for (int64_t i = 0; i < outer; i += outer_step)
        for (int64_t j = 0; j < inner; j += inner_step) {
            const int64_t a = std::min(outer_step, outer - i), b = std::min(inner_step, inner - j);
            const int64_t h = part->by_head ? i : j, t = part->by_head ? j : i;
            const Axis some = {part->by_head ? b : a, tokens.source, tokens.target};
            const int64_t heads = part->by_head ? a : b;
            part->blocks.push_back({source + h * plane.source.head + t * tokens.source,
                                    target + h * plane.target.head + t * tokens.target, token + t, h, 0});
            // Few forms differ, and mostly a block has that of the one before it.
            const auto same = [&](const CastForm& form) { return form.tokens() == some.size && form.heads() == heads; };
            const auto known = std::find_if(part->forms.rbegin(), part->forms.rend(), same);
            part->blocks.back().form = static_cast<size_t>(part->forms.rend() - known) - 1;
            if (known != part->forms.rend()) continue;
            part->blocks.back().form = part->forms.size();
            part->forms.emplace_back(plane, row, some, heads, part->by_head, part->factors.single(), kernels_, stream);
        }
}

// How many parts from `first` on are visited together, block by block: those whose rows lie between each other in the
// source, so that apart they would read each block twice.
size_t Cast::woven_parts(size_t first) const {
    const Part& part = parts_[first];
    const kvl_side& side = part.plane->source;
    const int64_t step = part.plane->heads > 1 ? std::min(side.head, side.token) : side.token;
    size_t count = 1;
    for (; first + count < parts_.size(); ++count) {
        const Part& other = parts_[first + count];
        const int64_t distance = static_cast<int64_t>(other.plane->source.base[0] - side.base[0]);
        if (other.blocks.size() != part.blocks.size() || std::llabs(distance) >= step) break;
    }
    return count;
}

void Cast::run() {
    if (parts_.empty()) return;
    const DefaultEnvironment environment;
    for (size_t i = 0, count; i < parts_.size(); i += count) run_parts(i, count = woven_parts(i));
    if (stream_) kernels_.fence();
}

// Not inlined, so that no computation moves out of the environment.
__attribute__((noinline)) void Cast::run_parts(size_t first, size_t count) {
    char* const source_scratch = reinterpret_cast<char*>(source_scratch_.data());
    char* const target_scratch = reinterpret_cast<char*>(target_scratch_.data());
    const size_t blocks = parts_[first].blocks.size(), ahead = parts_[first].ahead;
    for (int64_t layer = 0; layer < plan_.layers; ++layer) {
        const int64_t later = std::min(layer + 1, plan_.layers - 1);
        for (size_t i = 0; i < blocks; ++i) {
            const size_t next = i + ahead < blocks ? i + ahead : (i + ahead) % blocks;
            for (size_t k = first; k < first + count; ++k) {
                Part& part = parts_[k];
                const Block& block = part.blocks[i];
                const CastForm& form = part.forms[block.form];
                const kvl_plane& plane = *part.plane;
                const uint64_t source = plane.source.base[layer] + static_cast<uint64_t>(block.source);
                const uint64_t target = plane.target.base[layer] + static_cast<uint64_t>(block.target);
                const int64_t next_layer = i + ahead < blocks ? layer : later;
                const Block& after = part.blocks[next];
                const uint64_t fetched = plane.source.base[next_layer] + static_cast<uint64_t>(after.source);
                part.factors.fetch(part.forms[after.form], next_layer, after.token, after.head);
                CastRows rows = form.gather(reinterpret_cast<const char*>(source), source_scratch,
                                            static_cast<int64_t>(fetched - source));
                part.factors.fill(&rows, form, part.by_head, layer, block.token, block.head);
                form.cast(rows, reinterpret_cast<char*>(target), target_scratch);
            }
        }
    }
}

}  // namespace kvl
