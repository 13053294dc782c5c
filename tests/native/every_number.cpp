// Casts every number of the types of 1 and 2 bytes, and those of fp32 that are hard to round, into every type, with all
// kernels that this CPU has: the results must be those of numbers.h.
//
// Rows of 64 numbers fill the vectors of all kernels; of those of 13 many begin and all end inside one.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels_here.h"
#include "kvlingua.h"
#include "numbers.h"

namespace {

constexpr int64_t kWidths[] = {64, 13};

using Codes = std::vector<uint32_t>;  // of one type, in rows

// Every code of a type of 1 or 2 bytes. Of fp32: every upper half with some lower ones.
Codes every_code(int32_t type, const std::vector<uint32_t>& lower_halves) {
    Codes codes;
    const uint32_t all = numbers::type_of(type).bytes == 1 ? 1 << 8 : 1 << 16;
    for (uint32_t code = 0; code < all; ++code) {
        if (type != KVL_F32) codes.push_back(code);
        if (type == KVL_F32)
            for (const uint32_t lower : lower_halves) codes.push_back(code << 16 | lower);
    }
    return codes;
}

// The same, with lower halves beside the ties of bf16 and fp8, and the ties of fp16 with their neighbours.
Codes hard_codes(int32_t type) {
    Codes codes = every_code(type, {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff});
    if (type != KVL_F32) return codes;
    for (uint32_t code = 0; code < 1 << 16; ++code) {
        const float number = numbers::decode(KVL_F16, code);
        if (!std::isfinite(number)) continue;
        const int exponent = std::max(std::ilogb(number), -14);  // of the smallest normal number, where that is larger
        const float tie = number + std::copysign(std::ldexp(1.0f, exponent - 11), number);
        uint32_t bits;
        std::memcpy(&bits, &tie, sizeof bits);
        for (const uint32_t beside : {bits - 1, bits, bits + 1}) codes.push_back(beside);
    }
    return codes;
}

// Each code alone in a row of `width` equal ones, at a place that changes from row to row.
Codes alone(const Codes& codes, uint32_t others, int64_t width) {
    Codes rows(codes.size() * static_cast<size_t>(width), others);
    const size_t step = static_cast<size_t>(width);
    for (size_t i = 0; i < codes.size(); ++i) rows[i * step + i % step] = codes[i];
    return rows;
}

std::vector<uint8_t> packed(const Codes& codes, int bytes) {
    std::vector<uint8_t> memory(codes.size() * static_cast<size_t>(bytes));
    for (size_t i = 0; i < codes.size(); ++i)
        std::memcpy(&memory[i * static_cast<size_t>(bytes)], &codes[i], static_cast<size_t>(bytes));
    return memory;
}

// One plane of rows, each a token; scales per token on either side where there are any.
struct Rows {
    int32_t op, source_type, target_type;
    float factor;
    int64_t width;
    Codes codes;
    std::vector<float> source_scale, target_scale;

    int64_t count() const { return static_cast<int64_t>(codes.size()) / width; }
};

int32_t convert(const Rows& rows, int32_t kernels, std::vector<uint8_t>* numbers, std::vector<float>* scales) {
    const int from = numbers::type_of(rows.source_type).bytes, to = numbers::type_of(rows.target_type).bytes;
    const std::vector<uint8_t> memory = packed(rows.codes, from);
    numbers->assign(rows.codes.size() * static_cast<size_t>(to), 0x55);
    const int64_t table = 0;
    const auto address = [](const auto& of) { return reinterpret_cast<uint64_t>(of.data()); };
    const auto span = [&](const auto& of) {
        return kvl_span{address(of), address(of) + of.size() * sizeof(*of.data())};
    };
    std::vector<kvl_span> sources = {span(memory), span(rows.source_scale)}, targets = {span(*numbers), span(*scales)};
    for (std::vector<kvl_span>* spans : {&sources, &targets}) {
        if ((*spans)[1].begin == (*spans)[1].end) spans->pop_back();
        if (spans->size() == 2 && (*spans)[1].begin < (*spans)[0].begin) std::swap((*spans)[0], (*spans)[1]);
    }
    const uint64_t base[] = {address(memory), address(*numbers), address(rows.source_scale), address(*scales)};
    kvl_plane plane{};
    plane.op = rows.op;
    plane.source_type = rows.source_type;
    plane.target_type = rows.target_type;
    plane.factor = rows.factor;
    plane.heads = plane.dims = 1;
    plane.dim[0] = {rows.width, from, to};
    plane.source = {&base[0], 0, 0, rows.width * from, 0, 0};
    plane.target = {&base[1], 0, 0, rows.width * to, 0, 0};
    if (!rows.source_scale.empty()) plane.source_scale = {&base[2], 0, 0, 4, 0, 0};
    if (!scales->empty()) plane.target_scale = {&base[3], 0, 0, 4, 0, 0};
    kvl_plan plan{};
    plan.threads = 1;
    plan.kernels = kernels;
    plan.tokens = rows.count();
    plan.heads = plan.layers = plan.planes = 1;
    plan.plane = &plane;
    plan.source = {&table, 1, 1, plan.tokens, 0, sources.data(), static_cast<int64_t>(sources.size())};
    plan.target = {&table, 1, 1, plan.tokens, 0, targets.data(), static_cast<int64_t>(targets.size())};
    return kvl_convert(&plan);
}

// What the header says: the numbers, and the scales where they are made.
void expect(const Rows& rows, std::vector<uint8_t>* numbers, std::vector<float>* scales) {
    Codes codes;
    for (int64_t row = 0; row < rows.count(); ++row) {
        const size_t r = static_cast<size_t>(row), first = r * static_cast<size_t>(rows.width);
        std::vector<float> values;
        float most = 0;
        bool finite = true;
        for (size_t i = first; i < first + static_cast<size_t>(rows.width); ++i) {
            float x = numbers::decode(rows.source_type, rows.codes[i]);
            if (!rows.source_scale.empty()) x *= rows.source_scale[r];
            if (rows.op == KVL_CAST) x *= rows.factor;
            values.push_back(x);
            finite &= std::isfinite(x);
            most = std::max(most, std::fabs(x));
        }
        if (rows.op == KVL_QUANTISE) {
            const float scale = most / static_cast<float>(numbers::type_of(rows.target_type).largest);
            (*scales)[r] = finite && scale >= 0x1p-126f ? scale : 1.0f;
        }
        const float reciprocal = scales->empty() ? 1.0f : 1.0f / (*scales)[r];
        for (const float x : values) codes.push_back(numbers::encode(rows.target_type, x * reciprocal));
    }
    *numbers = packed(codes, numbers::type_of(rows.target_type).bytes);
}

int64_t wrong = 0, right = 0;

void compare(const Rows& rows) {
    std::vector<uint8_t> wanted;
    std::vector<float> wanted_scales = rows.target_scale;
    if (rows.op == KVL_QUANTISE) wanted_scales.assign(static_cast<size_t>(rows.count()), 0.0f);
    expect(rows, &wanted, &wanted_scales);
    for (const int32_t kernels : kernels_here()) {
        std::vector<uint8_t> found;
        std::vector<float> scales = wanted_scales;
        if (rows.op == KVL_QUANTISE) scales.assign(scales.size(), 0.0f);
        const int32_t code = convert(rows, kernels, &found, &scales);
        const bool same = code == KVL_OK && found == wanted && scales == wanted_scales;
        right += same ? static_cast<int64_t>(rows.codes.size()) : 0;
        if (same || ++wrong > 20) continue;
        const size_t bytes = wanted.size() / rows.codes.size();
        size_t at = 0, row = 0;
        while (at < found.size() && found[at] == wanted[at]) ++at;
        while (row < scales.size() && scales[row] == wanted_scales[row]) ++row;
        std::fprintf(stderr, "every_number: kernels %d return %d, op %d, types %d to %d, width %lld:", kernels, code,
                     rows.op, rows.source_type, rows.target_type, static_cast<long long>(rows.width));
        if (at < found.size())
            std::fprintf(stderr, " number %zu, %#x, becomes %#x instead of %#x", at / bytes, rows.codes[at / bytes],
                         numbers::load(&found[at / bytes * bytes], static_cast<int>(bytes)),
                         numbers::load(&wanted[at / bytes * bytes], static_cast<int>(bytes)));
        if (row < scales.size())
            std::fprintf(stderr, " row %zu, scale %a instead of %a", row, static_cast<double>(scales[row]),
                         static_cast<double>(wanted_scales[row]));
        std::fprintf(stderr, "\n");
    }
}

// By no factor; then by one, and by three, which make any lower bits of fp32.
void casts(int32_t source, int32_t target) {
    for (const int64_t width : kWidths) {
        Codes codes = hard_codes(source);
        while (codes.size() % static_cast<size_t>(width)) codes.push_back(0);
        compare({KVL_CAST, source, target, 1.0f, width, codes, {}, {}});
    }
    Rows rows{KVL_CAST, source, target, 0.37f, kWidths[0], every_code(source, {0x5555}), {}, {}};
    compare(rows);
    for (int64_t i = 0; i < rows.count(); ++i) {
        rows.source_scale.push_back(std::ldexp(1.0f + static_cast<float>(i % 7) / 8, static_cast<int>(i % 5) - 2));
        rows.target_scale.push_back(0.75f + static_cast<float>(i % 11));
    }
    compare(rows);
}

// Each number once the largest of its row, and once beside larger ones.
void scales_made(int32_t source) {
    const Codes codes = every_code(source, {0x5555});
    compare({KVL_QUANTISE, source, KVL_E4M3FN, 1.0f, 20, alone(codes, 0, 20), {}, {}});
    compare({KVL_QUANTISE, source, KVL_E5M2, 1.0f, 5, alone(codes, numbers::encode(source, 1.5f), 5), {}, {}});
    Rows rows{KVL_QUANTISE, source, KVL_E4M3FNUZ, 1.0f, 20, alone(codes, 0, 20), {}, {}};
    compare(rows);
    const float special[] = {-0.5f, 0.0f, HUGE_VALF, NAN, 1e-40f, -3e38f};
    for (int64_t i = 0; i < rows.count(); ++i)
        rows.source_scale.push_back(i % 50 < 6 ? special[i % 50] : 1.0f + static_cast<float>(i % 7) / 8);
    compare(rows);
}

}  // namespace

int main() {
    for (int32_t source = KVL_F32; source <= KVL_E5M2; ++source) {
        for (int32_t target = KVL_F32; target <= KVL_E5M2; ++target) casts(source, target);
        scales_made(source);
    }
    std::printf("every_number: %s is best; %lld casts are right, %lld calls wrong\n", kvl_kernels(),
                static_cast<long long>(right), static_cast<long long>(wrong));
    return wrong ? 1 : 0;
}
