#include "cast_factors.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "fetch.h"
#include "types.h"

namespace kvl {
namespace {

float largest_number(int32_t fp8) { return fp8 == KVL_E4M3FN ? 448.0f : fp8 == KVL_E4M3FNUZ ? 240.0f : 57344.0f; }

// The scale that brings `largest` to the type's largest number. None for what no scale could save, nor so small that
// its reciprocal might be infinite: those numbers stay as they are.
float made_scale(float largest, float type_largest) {
    const float scale = largest / type_largest;
    return scale >= 0x1p-126f && scale <= FLT_MAX ? scale : 1.0f;
}

// A line that is to be written must be fetched as such: with the ordinary prefetch, which GCC makes of it in code for
// any x86-64, made scales waited no less than without any (Zen 5).
KVL_INLINE void own_line(const float* p, bool prefetchw) {
#if defined(__x86_64__)
    if (prefetchw) asm volatile("prefetchw %0" ::"m"(*p));
#else
    (void)prefetchw;
    __builtin_prefetch(p, 1);
#endif
}

}  // namespace

Scales::Scales(const kvl_side& side, const kvl_view& view, int64_t first, int64_t last) : side_(&side) {
    if (!side.base) return;
    offset_.reserve(static_cast<size_t>(last - first));
    for (int64_t p = view.start + first; p < view.start + last; ++p)
        offset_.push_back(view.table[p / view.page] * side.block + token_offset(side, p % view.page));
}

bool Scales::single(int64_t heads) const {
    return !side_->base || ((heads == 1 || !side_->head) && !side_->block && !side_->token && !side_->tile);
}

template <typename F>
void Scales::each_line(int64_t layer, int64_t token, int64_t tokens, int64_t head, int64_t heads, const F& line) const {
    if (!exist()) return;
    const auto step = [](int64_t stride) { return std::max<int64_t>(1, 64 / std::max<int64_t>(stride, 1)); };
    const int64_t token_step = step(side_->token), head_step = step(side_->head);
    for (int64_t h = head; h < head + heads; h += head_step)
        for (int64_t t = token; t < token + tokens; t += token_step) line(at(layer, t, h));
}

CastFactors::CastFactors(const kvl_plan& plan, const kvl_plane& plane, const CastKernels& kernels, int64_t first,
                         int64_t last)
    : plane_(plane),
      kernels_(kernels),
      source_(plane.source_scale, plan.source, first, last),
      target_(plane.target_scale, plan.target, first, last),
      type_largest_(largest_number(plane.target_type)),
      single_(plane.op == KVL_CAST && source_.single(plane.heads) && target_.single(plane.heads)) {}

void CastFactors::reserve(int64_t rows) {
    for (std::vector<float>& factor : factor_)
        factor.resize(std::max(factor.size(), static_cast<size_t>(single_ ? 1 : rows)), 1.0f);
}

template <typename F>
void CastFactors::each_row(const CastForm& form, bool by_head, int64_t token, int64_t head, const F& row) const {
    if (single_) return row(token, head);
    const int64_t tokens = token + form.tokens(), heads = head + form.heads();
    if (by_head) {
        for (int64_t h = head; h < heads; ++h)
            for (int64_t t = token; t < tokens; ++t) row(t, h);
    } else {
        for (int64_t t = token; t < tokens; ++t)
            for (int64_t h = head; h < heads; ++h) row(t, h);
    }
}

void CastFactors::fetch(const CastForm& form, int64_t layer, int64_t token, int64_t head) const {
    if (single_) return;
    const auto read = [](const float* p) { fetch_line<false>(reinterpret_cast<const char*>(p)); };
    const auto write = [&](const float* p) { own_line(p, kernels_.prefetchw); };
    source_.each_line(layer, token, form.tokens(), head, form.heads(), read);
    if (plane_.op == KVL_QUANTISE)
        target_.each_line(layer, token, form.tokens(), head, form.heads(), write);
    else
        target_.each_line(layer, token, form.tokens(), head, form.heads(), read);
}

void CastFactors::fill(CastRows* rows, const CastForm& form, bool by_head, int64_t layer, int64_t token, int64_t head) {
    int count = 0;
    const auto each = [&](const auto& value) {
        float* next = factor_[count++].data();
        each_row(form, by_head, token, head, [&](int64_t t, int64_t h) { *next++ = value(t, h); });
    };
    if (source_.exist()) each([&](int64_t t, int64_t h) { return *source_.at(layer, t, h); });
    if (plane_.op == KVL_CAST) {
        if (plane_.factor != 1.0f) each([&](int64_t, int64_t) { return plane_.factor; });
        if (target_.exist()) each([&](int64_t t, int64_t h) { return 1.0f / *target_.at(layer, t, h); });
    } else {
        float* const made = factor_[count].data();
        const int64_t all = form.tokens() * form.heads();
        kernels_.largest[plane_.source_type - 1](*rows, made);
        for (int64_t i = 0; i < all && count; ++i) made[i] = std::fabs(made[i] * factor_[0][static_cast<size_t>(i)]);
        // The largest number by its own scale rounds to the type's largest, or comes to less; so do all beside it.
        rows->bounded = std::all_of(made, made + all, [](float largest) { return largest <= FLT_MAX; });
        for (int64_t i = 0; i < all; ++i) made[i] = made_scale(made[i], type_largest_);
        const float* scale = made;
        each_row(form, by_head, token, head, [&](int64_t t, int64_t h) { *target_.at(layer, t, h) = *scale++; });
        for (int64_t i = 0; i < all; ++i) made[i] = 1.0f / made[i];
        ++count;
    }
    rows->one = count <= 1;
    rows->factor_step = single_ ? 0 : 1;
    for (int i = 0; i < 3; ++i) rows->factor[i] = factor_[i].data();  // those that weren't filled in are 1
}

}  // namespace kvl
