// Casts, with scales that are read or made. A pass does some rows, a row being a head of a token.
#ifndef KVLINGUA_CUDA_CAST_PART_H_
#define KVLINGUA_CUDA_CAST_PART_H_

#include "numbers.h"
#include "scratch.h"

namespace kvl {

// A row of a pass: which token of the group it has, and where its numbers and scales are.
struct CastRow {
    bool exists;
    uint64_t source, target, source_scale, target_scale;
};

KVL_DEVICE CastRow find_row(const Part& part, const Scratch& scratch, uint32_t row) {
    uint32_t inner = row;
    const uint32_t outer = part.loop[1].size.divide_out(&inner);
    const uint32_t token = part.token_loop ? inner : outer, head = part.token_loop ? outer : inner;
    const Loop& heads = part.loop[1 - part.token_loop];
    const auto scale = [&](uint32_t side) {
        return part.sides >> side & 1 ? scratch.address[side][token] + head * part.side[side].head : 0;
    };
    return {scratch.address[kSource][token] != 0, scratch.address[kSource][token] + head * heads.source,
            scratch.address[kTarget][token] + head * heads.target, scale(kSourceScale), scale(kTargetScale)};
}

// Adds where `item` of a row is, counted in numbers or vectors of numbers.
KVL_DEVICE void find_number(const Part& part, uint32_t item, uint64_t* source, uint64_t* target) {
    for (uint32_t i = part.loops; i-- > 2;) {
        uint32_t index = item;
        if (i > 2) item = part.loop[i].size.divide_out(&index);
        *source += index * part.loop[i].source;
        *target += index * part.loop[i].target;
    }
}

// The largest magnitudes, `lanes` of them for each row. Those of NaN are above infinity's.
template <uint32_t kCount>
KVL_DEVICE void find_most(const Part& part, uint32_t first, uint32_t rows, Scratch* scratch) {
    const uint32_t lanes = part.lanes.divisor();
    each_thread([&](uint32_t thread) {
        for (uint32_t slot = thread; slot < rows * lanes; slot += kThreads) {
            uint32_t lane = slot, most = 0;
            const uint32_t row = part.lanes.divide_out(&lane);
            const CastRow found = find_row(part, *scratch, first + row);
            for (uint32_t item = lane; found.exists && item < part.per_row.divisor(); item += lanes) {
                uint64_t from = found.source, to = 0;
                uint32_t x[kCount];
                find_number(part, item, &from, &to);
                decode<kCount>(part.source_type, from, x);
                for (uint32_t i = 0; i < kCount; ++i) most = Scalar::max(most, x[i] & kAbs);
            }
            scratch->most[row * (lanes | 1) + lane] = most;
        }
    });
    barrier();
}

// The scale of a row whose largest magnitude is known, as csrc/cast_factors.cpp makes it.
KVL_DEVICE float make_scale(const Part& part, const CastRow& row, uint32_t most) {
    float largest = as_number(most < kInfinity ? most : kInfinity);
    if (row.source_scale) largest = as_number(as_bits(largest * load<float>(row.source_scale)) & kAbs);
    const float scale = largest / largest_of_type(part.target_type);
    return scale >= 0x1p-126f && scale <= as_number(kInfinity - 1) ? scale : 1.0f;
}

// What each row's numbers are multiplied by. Scales that are made are written.
KVL_DEVICE void find_factors(const Part& part, uint32_t first, uint32_t rows, Scratch* scratch) {
    const uint32_t lanes = part.lanes.divisor();
    each_thread([&](uint32_t thread) {
        if (thread >= rows) return;
        const CastRow row = find_row(part, *scratch, first + thread);
        if (!row.exists) return;
        float scale = 1.0f;
        if (part.kind == kQuantise) {
            uint32_t most = 0;
            for (uint32_t i = 0; i < lanes; ++i) most = Scalar::max(most, scratch->most[thread * (lanes | 1) + i]);
            store(row.target_scale, scale = make_scale(part, row, most));
        } else if (row.target_scale) {
            scale = load<float>(row.target_scale);
        }
        scratch->factor[0][thread] = row.source_scale ? load<uint32_t>(row.source_scale) : as_bits(1.0f);
        scratch->factor[1][thread] = as_bits(part.factor);
        scratch->factor[2][thread] = as_bits(1.0f / scale);
    });
    barrier();
}

template <uint32_t kCount>
KVL_DEVICE void cast_rows(const Part& part, uint32_t first, uint32_t rows, Scratch* scratch) {
    each_thread([&](uint32_t thread) {
        for (uint32_t item = thread; item < rows * part.per_row.divisor(); item += kThreads) {
            uint32_t number = item;
            const uint32_t row = part.per_row.divide_out(&number);
            CastRow found = find_row(part, *scratch, first + row);
            if (!found.exists) continue;
            uint32_t x[kCount];
            find_number(part, number, &found.source, &found.target);
            decode<kCount>(part.source_type, found.source, x);
            KVL_UNROLL
            for (uint32_t i = 0; i < kCount; ++i)
                for (uint32_t j = 0; j < 3; ++j) x[i] = Scalar::mul_f(x[i], scratch->factor[j][row]);
            encode<kCount>(part.target_type, found.target, x);
        }
    });
    barrier();
}

template <uint32_t kCount>
KVL_DEVICE void run_passes(const Part& part, Scratch* scratch) {
    for (uint32_t first = 0; first < part.items; first += part.rows) {
        const uint32_t rows = part.items - first < part.rows ? part.items - first : part.rows;
        if (part.kind == kQuantise) find_most<kCount>(part, first, rows, scratch);
        find_factors(part, first, rows, scratch);
        cast_rows<kCount>(part, first, rows, scratch);
    }
}

KVL_DEVICE void run_cast(const Part& part, Scratch* scratch) {
    if (part.count == 8)
        run_passes<8>(part, scratch);
    else
        run_passes<1>(part, scratch);
}

}  // namespace kvl

#endif  // KVLINGUA_CUDA_CAST_PART_H_
