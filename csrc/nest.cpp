#include "nest.h"

#include <algorithm>
#include <cstdlib>

#include "sorting.h"

namespace kvl {

Nest::Nest(const Axis* axes, int count, int64_t itemsize, const Kernels& kernels, bool stream)
    : kernels_(&kernels), stream_(stream), unit_(itemsize) {
    Axis sorted[kAxes];
    Axis* end = std::copy_if(axes, axes + count, sorted, [](const Axis& axis) { return axis.size > 1; });
    // The source's slowest axis first, and among equals the target's.
    sort_few(sorted, end, [](const Axis& a, const Axis& b) {
        const int64_t one = std::llabs(a.source), other = std::llabs(b.source);
        return one != other ? one > other : std::llabs(a.target) > std::llabs(b.target);
    });
    for (const Axis* axis = sorted; axis < end; ++axis) {
        const Axis& next = *axis;
        Axis& last = loops_[depth_ - (depth_ > 0)];
        if (depth_ && last.source == next.size * next.source && last.target == next.size * next.target)
            last = {last.size * next.size, next.source, next.target};
        else
            loops_[depth_++] = next;
    }
    if (depth_ && loops_[depth_ - 1].source == itemsize && loops_[depth_ - 1].target == itemsize)
        unit_ *= loops_[--depth_].size;
    if (find_transposition()) return;
    while (depth_ < 3) {
        std::move_backward(loops_, loops_ + depth_, loops_ + depth_ + 1);
        loops_[0] = {1, 0, 0};
        ++depth_;
    }
    depth_ -= 3;
    if (depth_ == 0 && unit_ >= 64) placed_rows_ = stream ? kernels.stream_placed_rows : kernels.placed_rows;
    rows_kernel_ = unit_ < 64 ? short_rows : stream_ ? kernels_->stream_rows : kernels_->rows;
}

// Takes two axes out of the loops if one follows the unit in the source and the other in the target, and there is a
// kernel for such units.
bool Nest::find_transposition() {
    if (unit_ > 16 || unit_ & (unit_ - 1)) return false;
    Axis* end = loops_ + depth_;
    Axis* cols = std::find_if(loops_, end, [&](const Axis& axis) { return axis.source == unit_; });
    Axis* rows = std::find_if(loops_, end, [&](const Axis& axis) { return axis.target == unit_; });
    if (cols == end || rows == end || cols == rows) return false;
    cols_ = *cols;
    rows_ = *rows;
    const auto taken = [&](const Axis& axis) { return &axis == cols || &axis == rows; };
    Axis* kept = loops_;
    for (Axis* axis = loops_; axis < end; ++axis)
        if (!taken(*axis)) *kept++ = *axis;
    depth_ = static_cast<int>(kept - loops_);
    const bool zip = rows_.size == 2 && cols_.target == 2 * unit_, unzip = cols_.size == 2 && rows_.source == 2 * unit_;
    if (unit_ <= 4 && (zip || unzip))
        find_pairs(zip);
    else
        transpose_ = kernels_->transpose[__builtin_ctzll(static_cast<uint64_t>(unit_))];
    return true;
}

// Pairs are short: one more loop goes to the kernel, that in which the target's rows go on, or the source's.
void Nest::find_pairs(bool zip) {
    zip_ = zip;
    pairs_ = (zip ? kernels_->zip : kernels_->unzip)[__builtin_ctzll(static_cast<uint64_t>(unit_))];
    if (!depth_) return;
    Axis* end = loops_ + depth_;
    Axis* inner = std::min_element(
        loops_, end, [&](const Axis& a, const Axis& b) { return zip ? a.source < b.source : a.target < b.target; });
    blocks_ = *inner;
    std::move(inner + 1, end, inner);
    --depth_;
}

void Nest::run(char* target, const char* source, int64_t ahead) const { loop(0, target, source, ahead); }

void Nest::loop(int depth, char* target, const char* source, int64_t ahead) const {
    if (depth < depth_) {
        const Axis& axis = loops_[depth];
        for (int64_t i = 0; i < axis.size; ++i)
            loop(depth + 1, target + i * axis.target, source + i * axis.source, ahead);
    } else if (pairs_ && zip_) {
        pairs_(target, source, rows_.source, cols_.size, blocks_, ahead, stream_);
    } else if (pairs_) {
        pairs_(target, source, cols_.target, rows_.size, blocks_, ahead, stream_);
    } else if (transpose_) {
        transpose_(target, cols_.target, source, rows_.source, rows_.size, cols_.size, ahead, stream_);
    } else {
        rows_kernel_(target, source, loops_ + depth_, unit_, ahead);
    }
}

}  // namespace kvl
