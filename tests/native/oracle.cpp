#include "oracle.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <set>

#include "kernels_here.h"
#include "numbers.h"

namespace {

constexpr uint8_t kSource = 1, kTarget = 2;    // whose bytes were read
constexpr __int128 kFar = __int128{1} << 100;  // further than any address

bool is_number(int32_t type) { return type >= KVL_F32 && type <= KVL_E5M2; }

// Bytes from the first to behind the last of `size` things, `inner` bytes each.
__int128 wrap(int64_t size, int64_t stride, __int128 inner) {
    return std::min(kFar, static_cast<__int128>(size - 1) * stride + inner);
}

// Of anything that a plan counts: beyond 2^40 a number is garbage, and no array can be trusted to have as many
// elements.
bool counts(int64_t number, int64_t least) { return number >= least && number <= int64_t{1} << 40; }

const char* wrong(int side, size_t at, const char* what) {
    static char text[100];
    const int index = static_cast<int>(at / arenas::kBytes);
    const void* address = arenas::piece(side, index) + at % arenas::kBytes;
    std::snprintf(text, sizeof text, "the byte at %p %s", address, what);
    return text;
}

uint32_t bits_of(float number) {
    uint32_t bits;
    std::memcpy(&bits, &number, 4);
    return bits;
}

}  // namespace

Oracle::Oracle(const kvl_plan& plan) : plan_(plan), refusal_(find_refusal()) {
    for (int side = 0; side < arenas::kSides; ++side) {
        before_[side] = after_[side] = arenas::contents(side);
        reads_[side].assign(before_[side].size(), 0);
        writes_[side].assign(before_[side].size(), 0);
    }
}

const char* Oracle::find_refusal() {
    if (plan_.tokens == 0) return nullptr;  // nothing is reached
    const std::vector<int32_t> here = kernels_here();
    const bool known = plan_.kernels == KVL_BEST || std::find(here.begin(), here.end(), plan_.kernels) != here.end();
    if (!here.empty() && !known) return "kernels that this CPU lacks";
    if (plan_.threads < 1 || !counts(plan_.tokens, 0) || !counts(plan_.heads, 1) || !counts(plan_.layers, 1) ||
        !counts(plan_.planes, 1))
        return "a count";
    if (!plan_.plane) return "no planes";
    for (const kvl_view* view : {&plan_.source, &plan_.target})
        if (const char* why = refuse_view(*view)) return why;
    std::set<int64_t> targets;
    for (int64_t i = plan_.target.start / plan_.target.page;
         i <= (plan_.target.start + plan_.tokens - 1) / plan_.target.page; ++i)
        if (!targets.insert(plan_.target.table[i]).second) return "a block of the target twice";
    for (int64_t i = 0; i < plan_.planes; ++i)
        if (const char* why = refuse_plane(plan_.plane[i])) return why;
    return nullptr;
}

const char* Oracle::refuse_view(const kvl_view& view) const {
    if (!counts(view.entries, 0) || !counts(view.blocks, 1) || !counts(view.page, 1) || !counts(view.start, 0) ||
        !counts(view.spans, 0))
        return "a count of a view";
    if (!view.table || !view.span) return "a pointer of a view";
    const __int128 last = (static_cast<__int128>(view.start) + plan_.tokens - 1) / view.page;
    if (last >= view.entries) return "a short table";
    for (int64_t i = view.start / view.page; i <= static_cast<int64_t>(last); ++i)
        if (view.table[i] < 0 || view.table[i] >= view.blocks) return "a block that isn't there";
    return nullptr;
}

const char* Oracle::refuse_plane(const kvl_plane& plane) {
    if (plane.op < KVL_COPY || plane.op > KVL_QUANTISE || plane.once < 0 || plane.once > 1) return "an operation";
    if (plane.op >= KVL_CAST
            ? !is_number(plane.source_type) || !is_number(plane.target_type)
            : plane.source_type < KVL_F32 || plane.target_type < KVL_F32 || plane.source_type > KVL_BYTE ||
                  plane.target_type > KVL_BYTE ||
                  numbers::type_of(plane.source_type).bytes != numbers::type_of(plane.target_type).bytes)
        return "a type";
    if (plane.heads != plan_.heads && plane.heads != 1) return "a number of heads";
    if (plane.dims < 1 || plane.dims > 4) return "a number of dims";
    __int128 elements = static_cast<__int128>(plane.heads) * plan_.layers * plan_.tokens;
    for (int64_t i = 0; i < plane.dims; ++i) {
        if (plane.dim[i].size < 1 || plane.dim[i].source < 0 || plane.dim[i].target < 0) return "an axis of dims";
        elements = std::min(kFar, elements * plane.dim[i].size);
    }
    elements_ = static_cast<int64_t>(std::min<__int128>(INT64_MAX, elements_ + elements));
    const char* why = refuse_side(plan_.source, plane.source, plane, 0);
    if (!why) why = refuse_side(plan_.target, plane.target, plane, 1);
    if (why || plane.op == KVL_COPY) return why;  // it has no scales
    if (plane.source_scale.base) why = refuse_side(plan_.source, plane.source_scale, plane, 2);
    if (!why && plane.target_scale.base) why = refuse_side(plan_.target, plane.target_scale, plane, 3);
    if (why) return why;
    if (plane.op == KVL_COPY_EQUAL && !(plane.source_scale.base && plane.target_scale.base)) return "scales to compare";
    if (plane.op == KVL_QUANTISE && !plane.target_scale.base) return "no place for scales";
    return nullptr;
}

// The whole reach of a side, whatever the table names, must lie inside one span.
const char* Oracle::refuse_side(const kvl_view& view, const kvl_side& side, const kvl_plane& plane, int which) const {
    if (!side.base) return "no bases";
    if (side.block < 0 || side.head < 0 || side.token < 0 || side.tile < 0 || side.tile_tokens < 0) return "a stride";
    Reach reach = which > 1 ? 4 : numbers::type_of(which ? plane.target_type : plane.source_type).bytes;
    for (int64_t i = 0; which < 2 && i < plane.dims; ++i)
        reach = wrap(plane.dim[i].size, which ? plane.dim[i].target : plane.dim[i].source, reach);
    reach = wrap(view.blocks, side.block, wrap(plane.heads, side.head, reach));
    if (!plane.once) {
        const int64_t last = view.page - 1, tile = side.tile_tokens;
        if (!tile || last < tile)
            reach = wrap(view.page, side.token, reach);
        else
            reach = std::max(wrap(last / tile + 1, side.tile, wrap(last % tile + 1, side.token, reach)),
                             wrap(last / tile, side.tile, wrap(tile, side.token, reach)));
    }
    for (int64_t layer = 0; layer < plan_.layers; ++layer) {
        bool inside = false;
        for (int64_t i = 0; i < view.spans && !inside; ++i)
            inside = side.base[layer] >= view.span[i].begin && side.base[layer] <= view.span[i].end &&
                     reach <= static_cast<__int128>(view.span[i].end) - side.base[layer];
        if (!inside) return "a reach outside the memory";
    }
    return nullptr;
}

Oracle::Place Oracle::place(const kvl_view& view, int64_t token) const {
    const int64_t position = view.start + token;
    return {view.table[position / view.page], position % view.page};
}

uint64_t Oracle::offset(const kvl_side& side, Place place, int64_t head) {
    const int64_t token = side.tile_tokens
                              ? place.token / side.tile_tokens * side.tile + place.token % side.tile_tokens * side.token
                              : place.token * side.token;
    return static_cast<uint64_t>(place.block * side.block + head * side.head + token);
}

uint32_t Oracle::read(uint64_t address, int bytes, uint8_t whose) {
    int side, index;
    uint64_t at;
    arenas::find(address, static_cast<uint64_t>(bytes), &side, &index, &at);
    at += static_cast<uint64_t>(index) * arenas::kBytes;
    for (int i = 0; i < bytes; ++i) reads_[side][at + static_cast<uint64_t>(i)] |= whose;
    return numbers::load(before_[side].data() + at, bytes);
}

void Oracle::write(uint64_t address, int bytes, uint32_t bits) {
    int side, index;
    uint64_t at;
    arenas::find(address, static_cast<uint64_t>(bytes), &side, &index, &at);
    at += static_cast<uint64_t>(index) * arenas::kBytes;
    for (int i = 0; i < bytes; ++i) {
        uint8_t& writes = writes_[side][at + static_cast<uint64_t>(i)];
        writes = static_cast<uint8_t>(std::min(writes + 1, 2));
        after_[side][at + static_cast<uint64_t>(i)] = static_cast<uint8_t>(bits >> 8 * i);
    }
}

void Oracle::each_row(const kvl_plane& plane, const std::function<void(int64_t, int64_t, int64_t)>& row) {
    for (int64_t layer = 0; layer < plan_.layers; ++layer)
        for (int64_t token = 0; token < plan_.tokens; ++token)
            for (int64_t head = 0; head < plane.heads; ++head) row(layer, token, head);
}

void Oracle::each_element(const kvl_plane& plane, const std::function<void(uint64_t, uint64_t)>& element) {
    int64_t at[4] = {0, 0, 0, 0};
    for (;;) {
        int64_t source = 0, target = 0;
        for (int64_t i = 0; i < plane.dims; ++i) {
            source += at[i] * plane.dim[i].source;
            target += at[i] * plane.dim[i].target;
        }
        element(static_cast<uint64_t>(source), static_cast<uint64_t>(target));
        int64_t i = plane.dims - 1;
        while (i >= 0 && ++at[i] == plane.dim[i].size) at[i--] = 0;
        if (i < 0) return;
    }
}

// One head of one token. Scales: addresses, 0 if there is none.
void Oracle::run_row(const kvl_plane& plane, uint64_t source, uint64_t target, uint64_t source_scale,
                     uint64_t target_scale) {
    const numbers::Type from = numbers::type_of(plane.source_type), to = numbers::type_of(plane.target_type);
    const auto value = [&](uint64_t offset) {
        float x = numbers::decode(plane.source_type, read(source + offset, from.bytes, kSource));
        if (source_scale) x *= numbers::decode(KVL_F32, read(source_scale, 4, kSource));
        return plane.op == KVL_CAST ? x * plane.factor : x;
    };
    float reciprocal = 1;
    if (plane.op == KVL_QUANTISE) {
        float most = 0;
        bool finite = true;
        each_element(plane, [&](uint64_t s, uint64_t) {
            const float x = std::fabs(value(s));
            finite &= std::isfinite(x);
            most = std::max(most, x);
        });
        float scale = most / static_cast<float>(to.largest);
        if (!finite || scale < 0x1p-126f) scale = 1;
        write(target_scale, 4, bits_of(scale));
        reciprocal = 1 / scale;
    } else if (plane.op == KVL_CAST && target_scale) {
        reciprocal = 1 / numbers::decode(KVL_F32, read(target_scale, 4, kTarget));
    }
    each_element(plane, [&](uint64_t s, uint64_t t) {
        if (plane.op < KVL_CAST)
            write(target + t, to.bytes, read(source + s, from.bytes, kSource));
        else
            write(target + t, to.bytes, numbers::encode(plane.target_type, value(s) * reciprocal));
    });
}

// Whether the plane can be run: false if scales differ.
bool Oracle::run_plane(const kvl_plane& plane) {
    std::set<std::vector<int64_t>> done;
    bool equal = true;
    each_row(plane, [&](int64_t layer, int64_t token, int64_t head) {
        Place from = place(plan_.source, token), to = place(plan_.target, token);
        if (plane.once) from.token = to.token = 0;
        const uint64_t source = plane.source.base[layer] + offset(plane.source, from, head);
        const uint64_t target = plane.target.base[layer] + offset(plane.target, to, head);
        uint64_t scales[2] = {0, 0};
        if (plane.source_scale.base)
            scales[0] = plane.source_scale.base[layer] + offset(plane.source_scale, from, head);
        if (plane.target_scale.base) scales[1] = plane.target_scale.base[layer] + offset(plane.target_scale, to, head);
        if (plane.op == KVL_COPY_EQUAL) equal &= read(scales[0], 4, kSource) == read(scales[1], 4, kTarget);
        if (plane.once) {
            const int64_t into =
                (plan_.target.start + token) % plan_.target.page;  // tokens of that block before this one
            const Place first = place(plan_.source, std::max<int64_t>(0, token - into));
            const uint64_t other = plane.source.base[layer] + offset(plane.source, {first.block, 0}, head);
            const int bytes = numbers::type_of(plane.source_type).bytes;
            each_element(plane, [&](uint64_t s, uint64_t) {
                equal &= read(source + s, bytes, kSource) == read(other + s, bytes, kSource);
            });
            if (!done.insert({layer, to.block, head}).second) return;
        }
        run_row(plane, source, target, scales[0], scales[1]);
    });
    return equal;
}

const char* Oracle::judge(int32_t code) {
    if (code == KVL_OK && refusal_) return refusal_;
    if (code == KVL_OK && plan_.tokens > 0)
        for (int64_t i = 0; i < plan_.planes; ++i)
            if (!run_plane(plan_.plane[i])) return "scales that differ";
    bool clear = true;  // no scale of the target is among what is written
    for (int side = 0; side < arenas::kSides; ++side)
        for (size_t i = 0; i < reads_[side].size(); ++i) {
            if (writes_[side][i] && reads_[side][i] & kSource) return "source and target overlap";
            clear &= !(writes_[side][i] && reads_[side][i]);
        }
    for (int side = 0; side < arenas::kSides; ++side) {
        const std::vector<uint8_t> found = arenas::contents(side);
        for (size_t i = 0; i < found.size(); ++i) {
            if (!writes_[side][i] && found[i] != before_[side][i])
                return wrong(side, i,
                             code == KVL_OK ? "was written but belongs to nobody" : "was written by a refused plan");
            if (clear && writes_[side][i] == 1 && found[i] != after_[side][i]) return wrong(side, i, "is wrong");
        }
    }
    return nullptr;
}
