#include "case.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <utility>

#include "kernels_here.h"

namespace {

constexpr int64_t kMost = int64_t{1} << 40;

int bytes_of(int32_t type) { return type == KVL_F32 ? 4 : type == KVL_F16 || type == KVL_BF16 ? 2 : 1; }

}  // namespace

uint64_t Bytes::take(int bytes) {
    uint64_t number = 0;
    for (int i = 0; i < bytes && left_; ++i, --left_) number |= uint64_t{*data_++} << 8 * i;
    return number;
}

int64_t Bytes::range(int64_t low, int64_t high) {
    const uint64_t choices = static_cast<uint64_t>(high - low) + 1;
    return low + static_cast<int64_t>(take(choices > 256 ? 4 : 1) % choices);
}

Case::Case(const uint8_t* data, size_t size) : in_(data, size) {
    if (in_.one_in(2))
        arenas::fill_with(static_cast<uint8_t>(in_.take(1)));  // then scales are equal
    else
        arenas::fill(in_.take(2));
    plan_.threads = static_cast<int32_t>(in_.range(1, 4));
    static const std::vector<int32_t> here = kernels_here();
    const int64_t which = in_.range(0, static_cast<int64_t>(here.size()));
    plan_.kernels = which ? here[static_cast<size_t>(which - 1)] : KVL_BEST;
    if (in_.one_in(16)) plan_.kernels = static_cast<int32_t>(in_.range(KVL_PORTABLE, KVL_NEON));
    const int64_t streams[] = {0, 1, 1 << 12, INT64_MAX};
    plan_.stream_bytes = in_.pick(streams);
    const int64_t most_tokens[] = {3, 17, 40, 100};
    plan_.tokens = in_.range(1, in_.pick(most_tokens));
    plan_.heads = in_.range(1, 4);
    plan_.layers = in_.range(1, 3);
    plan_.planes = in_.range(1, 3);
    for (int side = 0; side < arenas::kSides; ++side) {
        describe_memory(side);
        make_table(side);
    }
    planes_ = std::make_unique<kvl_plane[]>(static_cast<size_t>(plan_.planes));
    plan_.plane = planes_.get();
    for (int64_t i = 0; i < plan_.planes; ++i) make_plane(&planes_[static_cast<size_t>(i)]);
    if (in_.one_in(2))
        for (int64_t i = in_.range(1, 3); i; --i) spoil();
}

void Case::describe_memory(int side) {
    auto& spans = spans_[side];
    const int of = side && in_.one_in(8) ? 0 : side;  // rarely the target is said to lie in the source's memory
    for (int index = 0; index < arenas::kPieces; ++index) {
        const uint64_t begin = reinterpret_cast<uint64_t>(arenas::piece(of, index)), end = begin + arenas::kBytes;
        const uint64_t skip = in_.one_in(3) ? static_cast<uint64_t>(in_.range(0, 80)) : 0;
        const uint64_t left = in_.one_in(3) ? static_cast<uint64_t>(in_.range(0, 80)) : 0;
        if (in_.one_in(4)) {  // two spans that touch, or with a gap between them
            const uint64_t middle = begin + static_cast<uint64_t>(in_.range(1, arenas::kBytes / 2));
            spans.push_back({begin + skip, std::max(middle, begin + skip)});
            spans.push_back({std::max(middle, begin + skip) + static_cast<uint64_t>(in_.range(0, 20)), end - left});
        } else {
            spans.push_back({begin + skip, end - left});
        }
    }
    std::sort(spans.begin(), spans.end(), [](const kvl_span& a, const kvl_span& b) { return a.begin < b.begin; });
    if (in_.one_in(16)) std::swap(spans.front(), spans.back());
    if (in_.one_in(16)) spans.push_back(spans.front());
    if (in_.one_in(16)) std::swap(spans.back().begin, spans.back().end);
    kvl_view& view = side ? plan_.target : plan_.source;
    view.span = spans.data();
    view.spans = static_cast<int64_t>(spans.size());
}

void Case::make_table(int side) {
    kvl_view& view = side ? plan_.target : plan_.source;
    const int64_t pages[] = {1, 2, 5, 8, 16, 32, 48, 64};
    view.page = in_.pick(pages);
    view.start = in_.one_in(2) ? in_.range(0, 2 * view.page) : 0;
    view.entries = (view.start + plan_.tokens + view.page - 1) / view.page;
    view.blocks = view.entries + in_.range(0, 2) + (view.entries == 0);
    if (in_.one_in(8)) view.entries += 1;
    tables_[side] = std::make_unique<int64_t[]>(static_cast<size_t>(view.entries));
    view.table = tables_[side].get();
    const int64_t step = in_.one_in(2) ? 1 : view.blocks - 1;  // backwards, all blocks being taken once
    for (int64_t i = 0; i < view.entries; ++i) tables_[side][static_cast<size_t>(i)] = (i * step + 1) % view.blocks;
    if (view.entries && in_.one_in(4))
        std::swap(tables_[side][0], tables_[side][static_cast<size_t>(in_.range(0, view.entries - 1))]);
    if (view.entries && side == 0 && in_.one_in(8))
        tables_[side][0] = tables_[side][static_cast<size_t>(view.entries - 1)];
}

void Case::make_plane(kvl_plane* plane) {
    const int32_t ops[] = {KVL_COPY, KVL_COPY, KVL_COPY, KVL_COPY_EQUAL, KVL_CAST, KVL_CAST, KVL_QUANTISE};
    const int32_t small[] = {KVL_E4M3FN, KVL_E4M3FNUZ, KVL_E5M2}, wide[] = {KVL_F32, KVL_F16, KVL_BF16};
    plane->op = in_.pick(ops);
    plane->factor = 1.0f;
    plane->source_type = static_cast<int32_t>(in_.range(KVL_F32, plane->op < KVL_CAST ? KVL_BYTE : KVL_E5M2));
    plane->target_type = plane->source_type;
    if (plane->op == KVL_CAST) plane->target_type = static_cast<int32_t>(in_.range(KVL_F32, KVL_E5M2));
    if (plane->op == KVL_QUANTISE) {
        plane->source_type = in_.pick(wide);
        plane->target_type = in_.pick(small);
    }
    if (plane->op <= KVL_COPY && in_.one_in(8)) plane->once = 1;
    if (plane->op == KVL_CAST && in_.one_in(4)) plane->factor = 2.0f;
    if (plane->op == KVL_CAST && in_.one_in(8)) {
        plane->once = 1;
        plane->source_type = plane->target_type = KVL_F32;
    }
    plane->heads = in_.one_in(8) ? 1 : plan_.heads;
    plane->dims = in_.range(1, 4);
    const int64_t widths[] = {1, 2, 3, 7, 8, 16, 32, 33, 64, 96};
    int64_t width = in_.pick(widths);
    for (int i = 3; i >= 0; --i) {
        kvl_axis& axis = plane->dim[i];
        if (i >= plane->dims)
            axis = {1, 0, 0};
        else if (i == 0)
            axis = {width, 0, 0};
        else {
            const int64_t parts[] = {1, 2, 4, 8, 16};
            const int64_t part = in_.pick(parts);
            axis = {width % part ? 1 : part, 0, 0};
            width /= axis.size;
        }
    }
    const bool scales = plane->op == KVL_COPY_EQUAL || plane->op == KVL_QUANTISE;
    make_side(&plane->source, 0, bytes_of(plane->source_type), plane->heads, plane);
    make_side(&plane->target, 1, bytes_of(plane->target_type), plane->heads, plane);
    if (plane->once || plane->op == KVL_COPY) return;
    if (plane->op == KVL_COPY_EQUAL || in_.one_in(2)) make_side(&plane->source_scale, 0, 4, plane->heads, nullptr);
    if (scales || in_.one_in(2)) make_side(&plane->target_scale, 1, 4, plane->heads, nullptr);
}

// Strides of dense nested axes in some order, sometimes padded, sometimes 0 where nothing is written.
void Case::make_side(kvl_side* out, int which, int item, int64_t heads, kvl_plane* plane) {
    const kvl_view& view = which ? plan_.target : plan_.source;
    if (plane ? in_.one_in(3) : in_.one_in(6)) out->tile_tokens = in_.range(1, view.page);
    const bool tiled = out->tile_tokens > 0;
    struct Axis {
        int64_t size;
        int64_t* stride;
    };
    std::vector<Axis> axes = {
        {view.blocks, &out->block}, {heads, &out->head}, {tiled ? out->tile_tokens : view.page, &out->token}};
    if (tiled) axes.push_back({(view.page + out->tile_tokens - 1) / out->tile_tokens, &out->tile});
    for (int64_t i = 0; plane && i < plane->dims; ++i)
        axes.push_back({plane->dim[i].size, which ? &plane->dim[i].target : &plane->dim[i].source});
    if (in_.one_in(2))  // any order; else blocks outside
        for (size_t i = axes.size(); i > 1; --i)
            std::swap(axes[i - 1], axes[static_cast<size_t>(in_.range(0, static_cast<int64_t>(i) - 1))]);
    int64_t dense = item, reach = item;
    for (size_t i = axes.size(); i--;) {
        if (in_.one_in(12)) dense += item * in_.range(0, 9);
        *axes[i].stride = !plane && in_.one_in(3) ? 0 : dense;  // a scale for all tokens or heads
        reach += (axes[i].size - 1) * *axes[i].stride;
        if (*axes[i].stride) dense *= axes[i].size;
    }
    bases_.push_back(std::make_unique<uint64_t[]>(static_cast<size_t>(plan_.layers)));
    out->base = bases_.back().get();
    for (int64_t layer = 0; layer < plan_.layers; ++layer)
        bases_.back()[static_cast<size_t>(layer)] = place(which, reach, item);
}

// An address for `reach` bytes: behind what was placed before it, at a span's very end, or just anywhere in it.
uint64_t Case::place(int side, int64_t reach, int item) {
    const auto& spans = spans_[side];
    const kvl_span& span = spans[static_cast<size_t>(in_.range(0, static_cast<int64_t>(spans.size()) - 1))];
    const uint64_t size = span.end > span.begin ? span.end - span.begin : 0, need = static_cast<uint64_t>(reach);
    const uint64_t align = static_cast<uint64_t>(item);
    const uint64_t first = (span.begin + align - 1) / align * align;
    if (size < need + align) return first;
    if (in_.one_in(4)) return (span.end - need) / align * align;
    if (in_.one_in(6))
        return first + static_cast<uint64_t>(in_.range(0, static_cast<int64_t>(size - need - align))) / align * align;
    if (used_[side] + need + align > size) used_[side] = 0;
    const uint64_t address = first + used_[side] / align * align;
    used_[side] += need + align;
    return address;
}

int64_t Case::hostile() {
    const int64_t numbers[] = {0,
                               1,
                               -1,
                               2,
                               3,
                               -8,
                               64,
                               1 << 16,
                               int64_t{1} << 31,
                               int64_t{1} << 32,
                               kMost,
                               kMost + 1,
                               int64_t{1} << 62,
                               INT64_MAX,
                               INT64_MIN};
    return in_.one_in(3) ? static_cast<int64_t>(in_.take(8)) : in_.pick(numbers);
}

void Case::spoil() {
    kvl_plane& plane =
        planes_[static_cast<size_t>(in_.range(0, plan_.planes > 0 && plan_.planes < 4 ? plan_.planes - 1 : 0))];
    const int which = static_cast<int>(in_.range(0, 1));
    kvl_view& view = which ? plan_.target : plan_.source;
    kvl_side* sides[] = {&plane.source, &plane.target, &plane.source_scale, &plane.target_scale};
    kvl_side& side = *in_.pick(sides);
    kvl_axis& axis = plane.dim[in_.range(0, 3)];
    int64_t* numbers[] = {&plan_.tokens, &plan_.heads, &plan_.stream_bytes, &plane.heads, &plane.dims,
                          &axis.size,    &axis.source, &axis.target,        &view.blocks, &view.page,
                          &view.start,   &side.block,  &side.head,          &side.token,  &side.tile_tokens,
                          &side.tile,    &side.token,  &axis.size,          &view.page,   &side.block};
    int32_t* words[] = {&plan_.threads,     &plan_.kernels, &plane.op,      &plane.source_type,
                        &plane.target_type, &plane.once,    &plane.reserved};
    int64_t* counts[] = {&plan_.layers, &plan_.planes, &view.entries, &view.spans};
    switch (in_.range(0, 9)) {
        case 0:  // a pointer
            switch (in_.range(0, 4)) {
                case 0:
                    plan_.plane = nullptr;
                    break;
                case 1:
                    view.table = nullptr;
                    break;
                case 2:
                    view.span = nullptr;
                    break;
                default:
                    side.base = nullptr;
            }
            break;
        case 1: {  // an address
            uint64_t* bases = bases_[static_cast<size_t>(in_.range(0, static_cast<int64_t>(bases_.size()) - 1))].get();
            bases[0] += static_cast<uint64_t>(in_.one_in(2) ? hostile() : in_.range(-64, 64));
            break;
        }
        case 2:  // a block number
            if (view.entries > 0 && view.entries < kMost)
                tables_[which][static_cast<size_t>(in_.range(0, view.entries - 1))] =
                    in_.one_in(2) ? hostile()
                                  : in_.range(-2, view.blocks < 0 || view.blocks > 99 ? 0 : view.blocks + 1);
            break;
        case 3: {
            int32_t* word = in_.pick(words);
            *word = in_.one_in(2) ? static_cast<int32_t>(in_.take(4)) : static_cast<int32_t>(in_.range(-1, 9));
            break;
        }
        case 4: {  // a length: the true one, a smaller one, or one that nobody may believe
            int64_t* count = in_.pick(counts);
            if (*count > kMost) break;
            const int64_t unbelievable = in_.one_in(2) ? INT64_MIN : kMost + 1 + static_cast<int64_t>(in_.take(5));
            *count = in_.one_in(2) ? std::min(*count, in_.range(-1, 2)) : unbelievable;
            break;
        }
        default: {
            int64_t* number = in_.pick(numbers);
            const uint64_t beside = static_cast<uint64_t>(*number) + static_cast<uint64_t>(in_.range(-9, 9));
            *number = in_.one_in(2) ? hostile() : static_cast<int64_t>(beside);
        }
    }
}
