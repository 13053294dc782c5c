#include "parts.h"

#include <algorithm>

#include "../types.h"
#include "scratch.h"

namespace kvl {
namespace {

constexpr int64_t kLeastBytes = kThreads * 16;  // of a grid block: an access for each thread
constexpr int64_t kMostLanes = 64;              // threads that look for a row's largest number

uint32_t index(int64_t value) {
    if (value < 0 || value >= kMostIndex) throw TooLarge();
    return static_cast<uint32_t>(value);
}

Divider divider(int64_t value) { return Divider(index(value)); }

int64_t shares(int64_t whole, int64_t most) { return (whole + most - 1) / most; }

// The least that each of so many shares can be cut down to.
int64_t even(int64_t whole, int64_t most) { return shares(whole, shares(whole, most)); }

uint64_t bytes(int64_t stride) { return static_cast<uint64_t>(stride); }

// The largest power of two up to 16 that divides all that `bits` was put together from.
uint32_t access(uint64_t bits) {
    uint32_t unit = 16;
    while (bits % unit) unit /= 2;
    return unit;
}

// All strides of a side's tokens and its bases, put together.
uint64_t alignment(const kvl_plan& plan, const kvl_side& side) {
    uint64_t bits = bytes(side.block) | bytes(side.token) | bytes(side.tile);
    for (int64_t layer = 0; layer < plan.layers; ++layer) bits |= side.base[layer];
    return bits;
}

// A part's making.
class Maker {
  public:
    Maker(const kvl_plan& plan, const kvl_plane& plane, const Range& range, const Tuning& tuning)
        : plan_(plan), plane_(plane), range_(range), tuning_(tuning) {
        made_.part.once = plane.once;
        made_.part.slices = Divider(1);
    }

    Made rows();
    Made casts();
    Made equal_scales();
    Made equal_blocks();

  private:
    void take_axes();
    void join_axes(int64_t from, int64_t to);
    bool transpose();
    void cut_dims(const kvl_axis& dims, const kvl_side& dim_side, int64_t kvl_axis::* stride);
    void set_side(int which, const kvl_side& side);
    void add_loop(int64_t size, int64_t source, int64_t target);
    void add_tokens();
    void sort_by_source();
    void group_tokens(int64_t token_bytes);
    Made finish();

    const kvl_plan& plan_;
    const kvl_plane& plane_;
    const Range& range_;
    const Tuning& tuning_;
    Made made_{};
    std::vector<kvl_axis> axes_;         // heads and dims of more than one step
    int64_t source_unit_, target_unit_;  // bytes that are in one piece on both sides
};

void Maker::take_axes() {
    if (plane_.heads > 1) axes_.push_back({plane_.heads, plane_.source.head, plane_.target.head});
    for (int64_t i = 0; i < plane_.dims; ++i)
        if (plane_.dim[i].size > 1) axes_.push_back(plane_.dim[i]);
}

// Joins what is in one piece on both sides to elements of so many bytes.
void Maker::join_axes(int64_t from, int64_t to) {
    source_unit_ = from;
    target_unit_ = to;
    const auto next = [&](const kvl_axis& axis) { return axis.source == source_unit_ && axis.target == target_unit_; };
    for (auto it = axes_.begin(); (it = std::find_if(axes_.begin(), axes_.end(), next)) != axes_.end();) {
        source_unit_ *= it->size;
        target_unit_ *= it->size;
        axes_.erase(it);
    }
}

void Maker::set_side(int which, const kvl_side& side) {
    if (!side.base) return;
    Part& part = made_.part;
    part.sides |= 1u << which;
    made_.side[which] = &side;
    Side& out = part.side[which];
    out.block = bytes(side.block);
    out.head = bytes(side.head);
    if (plane_.once) return;  // a block's value is the same for all of its tokens
    out.tile_tokens = divider(side.tile_tokens ? std::min(side.tile_tokens, kMostIndex - 1) : 1);
    out.tile = bytes(side.tile_tokens ? side.tile : side.token);
    out.token = bytes(side.tile_tokens ? side.token : 0);
}

void Maker::add_loop(int64_t size, int64_t source, int64_t target) {
    made_.part.loop[made_.part.loops++] = {divider(size), bytes(source), bytes(target)};
}

void Maker::add_tokens() {
    made_.part.token_loop = made_.part.loops;
    add_loop(made_.part.group, plane_.once ? plane_.source.block : plane_.source.token, 0);
}

// Puts the loops into the order in which the source lies in memory.
void Maker::sort_by_source() {
    Part& part = made_.part;
    for (uint32_t i = 1; i < part.loops; ++i)
        for (uint32_t j = i; j > 0 && part.loop[j].source > part.loop[j - 1].source; --j) {
            std::swap(part.loop[j], part.loop[j - 1]);
            if (part.token_loop == j - 1)
                part.token_loop = j;
            else if (part.token_loop == j)
                part.token_loop = j - 1;
        }
}

// So many tokens to a grid block that it has enough to do, and that there are enough grid blocks.
void Maker::group_tokens(int64_t token_bytes) {
    Part& part = made_.part;
    if (part.once) {
        const Places target = find_places(plan_.target, range_);
        part.tokens = target.page.divide(index(target.first + range_.tokens() - 1)) + 1;
    } else {
        part.tokens = index(range_.tokens());
    }
    const __int128 all = static_cast<__int128>(token_bytes) * part.tokens * range_.layers() * plan_.planes;
    const auto share = static_cast<int64_t>(std::min<__int128>(all / tuning_.blocks, tuning_.block_bytes));
    const int64_t most = std::clamp<int64_t>(std::max(share, kLeastBytes) / token_bytes, 1, kMostTokens);
    part.group = static_cast<uint32_t>(even(part.tokens, most));
}

Made Maker::finish() {
    Part& part = made_.part;
    const int64_t groups = shares(static_cast<int64_t>(part.tokens) + part.skip, part.group);
    part.groups = divider(groups);
    index(static_cast<int64_t>(part.tokens) + part.skip + part.group);
    made_.blocks = groups * range_.layers() * part.slices.divisor();
    return made_;
}

Made Maker::rows() {
    Part& part = made_.part;
    const int64_t item = type_bytes(plane_.source_type);
    take_axes();
    join_axes(item, item);
    set_side(kSource, plane_.source);
    set_side(kTarget, plane_.target);
    uint64_t bits = bytes(source_unit_) | alignment(plan_, plane_.source) | alignment(plan_, plane_.target);
    for (const kvl_axis& axis : axes_) bits |= bytes(axis.source) | bytes(axis.target);
    part.kind = kRows;
    part.unit = access(bits);
    if (transpose()) return finish();
    int64_t row = source_unit_;
    for (const kvl_axis& axis : axes_) row *= axis.size;
    group_tokens(row);
    add_tokens();
    for (const kvl_axis& axis : axes_) add_loop(axis.size, axis.source, axis.target);
    sort_by_source();
    if (source_unit_ > part.unit) add_loop(source_unit_ / part.unit, part.unit, part.unit);
    part.items = index(row / part.unit * part.group);
    return finish();
}

// Whether tokens are next to each other on one side and dims on the other; then makes a part of that.
bool Maker::transpose() {
    Part& part = made_.part;
    const int64_t unit = source_unit_;
    if (part.unit != unit || plane_.once || range_.tokens() < 2) return false;
    if (unit == 16) return false;  // whole accesses as they are: a tile would only be in the way
    const auto dense = [&](const kvl_side& side) { return side.token == unit && side.tile_tokens != 1; };
    const bool from_dims = dense(plane_.target);
    if (from_dims == dense(plane_.source)) return false;
    const kvl_side& dim_side = from_dims ? plane_.source : plane_.target;
    int64_t kvl_axis::* near = from_dims ? &kvl_axis::source : &kvl_axis::target;
    int64_t kvl_axis::* far = from_dims ? &kvl_axis::target : &kvl_axis::source;
    const auto next = [&](const kvl_axis& axis) { return axis.*near == unit && axis.size > 1; };
    const auto dims = std::find_if(axes_.begin(), axes_.end(), next);
    if (dims == axes_.end()) return false;
    part.kind = from_dims ? kFromDims : kToDims;
    part.dim_step = bytes((*dims).*far);
    const kvl_axis cut = *dims;
    axes_.erase(dims);
    part.tokens = index(range_.tokens());
    part.group = tokens_of_tile(from_dims, part.unit);
    part.skip = find_places(from_dims ? plan_.target : plan_.source, range_).first % part.group;
    cut_dims(cut, dim_side, near);
    int64_t slices = part.chunks.divisor();
    for (const kvl_axis& axis : axes_) {
        add_loop(axis.size, axis.source, axis.target);
        slices = index(slices * axis.size);
    }
    part.slices = divider(slices);
    return true;
}

// Cuts dims into slices that fit into a tile, as even as vectors let them be.
void Maker::cut_dims(const kvl_axis& dims, const kvl_side& dim_side, int64_t kvl_axis::* stride) {
    Part& part = made_.part;
    const int64_t most = part.kind == kFromDims ? kTileRow / part.unit : kTileRows;
    uint64_t bits = alignment(plan_, dim_side) | bytes(dims.size) * part.unit;
    for (const kvl_axis& axis : axes_) bits |= bytes(axis.*stride);
    const int64_t each = access(bits) == 16 ? 16 / part.unit : 1;  // dims of an access
    const int64_t chunks = shares(dims.size, most);
    part.size = index(dims.size);
    part.chunk = index(shares(dims.size, chunks * each) * each);
    part.chunks = divider(shares(dims.size, part.chunk));
    part.count = index(each);
    part.per_row = divider(part.chunk / each);
    part.last_row = divider((part.size - (part.chunks.divisor() - 1) * part.chunk) / each);
}

Made Maker::casts() {
    Part& part = made_.part;
    const int64_t from = type_bytes(plane_.source_type), to = type_bytes(plane_.target_type);
    for (int64_t i = 0; i < plane_.dims; ++i)
        if (plane_.dim[i].size > 1) axes_.push_back(plane_.dim[i]);
    join_axes(from, to);
    part.kind = plane_.op == KVL_CAST ? kCast : kQuantise;
    part.source_type = plane_.source_type;
    part.target_type = plane_.target_type;
    part.factor = plane_.op == KVL_CAST ? plane_.factor : 1.0f;
    set_side(kSource, plane_.source);
    set_side(kTarget, plane_.target);
    set_side(kSourceScale, plane_.source_scale);
    set_side(kTargetScale, plane_.target_scale);
    // Eight numbers at a time, where they are in one piece and accesses are aligned.
    uint64_t source_bits = alignment(plan_, plane_.source) | bytes(plane_.source.head);
    uint64_t target_bits = alignment(plan_, plane_.target) | bytes(plane_.target.head);
    for (const kvl_axis& axis : axes_) {
        source_bits |= bytes(axis.source);
        target_bits |= bytes(axis.target);
    }
    const int64_t joined = source_unit_ / from;
    const bool aligned = source_bits % bytes(std::min<int64_t>(16, 8 * from)) == 0 &&
                         target_bits % bytes(std::min<int64_t>(16, 8 * to)) == 0;
    part.count = joined % 8 == 0 && aligned ? 8 : 1;
    int64_t row = joined;
    for (const kvl_axis& axis : axes_) row *= axis.size;
    group_tokens(row * plane_.heads * std::max(from, to));
    add_tokens();
    add_loop(plane_.heads, plane_.source.head, plane_.target.head);
    if (part.loop[1].source > part.loop[0].source) {
        std::swap(part.loop[0], part.loop[1]);
        part.token_loop = 1;
    }
    for (const kvl_axis& axis : axes_) add_loop(axis.size, axis.source, axis.target);
    if (joined > part.count || part.loops == 2) add_loop(joined / part.count, part.count * from, part.count * to);
    part.per_row = divider(row / part.count);
    // Threads of a row, and rows of a pass, have as much to do as each other.
    const int64_t lanes = part.kind == kQuantise ? even(row / part.count, kMostLanes) : 1;
    part.lanes = divider(lanes);
    part.items = index(part.group * plane_.heads);
    part.rows = index(even(part.items, std::min<int64_t>(kThreads, kSlots / (lanes | 1))));
    index(row / part.count * kThreads);
    return finish();
}

Made Maker::equal_scales() {
    Part& part = made_.part;
    part.kind = kEqualScales;
    part.unit = sizeof(float);
    set_side(kSource, plane_.source_scale);
    set_side(kTarget, plane_.target_scale);
    group_tokens(plane_.heads * part.unit);
    add_tokens();
    add_loop(plane_.heads, plane_.source_scale.head, plane_.target_scale.head);
    part.items = index(plane_.heads * part.group);
    return finish();
}

Made Maker::equal_blocks() {
    Part& part = made_.part;
    part.kind = kEqualBlocks;
    part.unit = static_cast<uint32_t>(type_bytes(plane_.source_type));
    take_axes();
    set_side(kSource, plane_.source);
    set_side(kTarget, plane_.source);
    part.once = 0;  // every token is looked at
    int64_t row = part.unit;
    for (const kvl_axis& axis : axes_) row *= axis.size;
    group_tokens(row);
    add_tokens();
    for (const kvl_axis& axis : axes_) add_loop(axis.size, axis.source, axis.source);
    part.items = index(row / part.unit * part.group);
    return finish();
}

}  // namespace

Places find_places(const kvl_view& view, const Range& range) {
    Places places;
    places.page = divider(view.page);
    places.first = index((view.start + range.first) % view.page);
    index(places.first + range.tokens());
    return places;
}

bool compares(const kvl_plane& plane) { return plane.op == KVL_COPY_EQUAL || plane.once; }

Made make_part(const kvl_plan& plan, const kvl_plane& plane, const Range& range, const Tuning& tuning) {
    Maker maker(plan, plane, range, tuning);
    if (range.judges) return plane.once ? maker.equal_blocks() : maker.equal_scales();
    return plane.op == KVL_COPY || plane.op == KVL_COPY_EQUAL ? maker.rows() : maker.casts();
}

}  // namespace kvl
