#include "nest.h"

#include <algorithm>
#include <cstdlib>

namespace kvl {

Nest::Nest(const Axis* axes, int count, int64_t itemsize, const Kernels& kernels, bool stream)
    : kernels_(&kernels), stream_(stream), unit_(itemsize) {
    // Sorted by insertion: the source's slowest axis first, and among equals the target's.
    const auto slower = [](const Axis& a, const Axis& b) {
        const int64_t one = std::llabs(a.source), other = std::llabs(b.source);
        return one != other ? one > other : std::llabs(a.target) > std::llabs(b.target);
    };
    Axis sorted[kAxes];
    int depth = 0;
    for (const Axis* axis = axes; axis < axes + count; ++axis) {
        if (axis->size == 1) continue;
        int i = depth++;
        for (; i > 0 && slower(*axis, sorted[i - 1]); --i) sorted[i] = sorted[i - 1];
        sorted[i] = *axis;
    }
    for (int i = 0; i < depth; ++i) {
        const Axis& next = sorted[i];
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
    transpose_ = kernels_->transpose[__builtin_ctzll(static_cast<uint64_t>(unit_))];
    cols_ = *cols;
    rows_ = *rows;
    const auto taken = [&](const Axis& axis) { return &axis == cols || &axis == rows; };
    Axis* kept = loops_;
    for (Axis* axis = loops_; axis < end; ++axis)
        if (!taken(*axis)) *kept++ = *axis;
    depth_ = static_cast<int>(kept - loops_);
    return true;
}

void Nest::run(char* target, const char* source, int64_t ahead) const { loop(0, target, source, ahead); }

void Nest::loop(int depth, char* target, const char* source, int64_t ahead) const {
    if (depth < depth_) {
        const Axis& axis = loops_[depth];
        for (int64_t i = 0; i < axis.size; ++i)
            loop(depth + 1, target + i * axis.target, source + i * axis.source, ahead);
    } else if (transpose_) {
        transpose_(target, cols_.target, source, rows_.source, rows_.size, cols_.size, ahead, stream_);
    } else {
        rows_kernel_(target, source, loops_ + depth_, unit_, ahead);
    }
}

}  // namespace kvl
