#include "nest.h"

#include <algorithm>
#include <cstdlib>

namespace kvl {

Nest::Nest(const Axis (&axes)[kAxes], int64_t itemsize, const Kernels& kernels, bool stream)
    : kernels_(&kernels), stream_(stream), itemsize_(itemsize) {
    // Sorted by insertion: the source's slowest axis first, and among equals the target's.
    const auto slower = [](const Axis& a, const Axis& b) {
        const int64_t one = std::llabs(a.source), other = std::llabs(b.source);
        return one != other ? one > other : std::llabs(a.target) > std::llabs(b.target);
    };
    Axis loop[kAxes];
    int depth = 0;
    for (const Axis& axis : axes) {
        if (axis.size == 1) continue;
        int i = depth++;
        for (; i > 0 && slower(axis, loop[i - 1]); --i) loop[i] = loop[i - 1];
        loop[i] = axis;
    }
    int kept = 0;
    for (int i = 0; i < depth; ++i) {
        const Axis& next = loop[i];
        if (kept && loop[kept - 1].source == next.size * next.source &&
            loop[kept - 1].target == next.size * next.target)
            loop[kept - 1] = {loop[kept - 1].size * next.size, next.source, next.target};
        else
            loop[kept++] = next;
    }
    depth = kept;

    // The fastest axis of the source is contiguous there, or nothing is.
    row_bytes_ = itemsize;
    if (depth && loop[depth - 1].source == itemsize) {
        const int fastest = depth - 1;
        if (loop[fastest].target == itemsize) {
            row_bytes_ = loop[fastest].size * itemsize;
            --depth;
        } else {
            const auto contiguous = [&](const Axis& axis) { return axis.target == itemsize; };
            Axis* rows = std::find_if(loop, loop + fastest, contiguous);
            if (rows != loop + fastest) {
                transpose_ = true;
                cols_ = loop[fastest];
                rows_ = *rows;
                std::move(rows + 1, loop + fastest, rows);
                depth -= 2;
            }
        }
    }
    const int end = transpose_ ? 2 : 3;
    for (int i = 0; i < depth; ++i) loops_[end - depth + i] = loop[i];
}

void Nest::run(char* target, const char* source, int64_t ahead) const {
    if (!transpose_) {
        (stream_ ? kernels_->stream_rows : kernels_->rows)(target, source, loops_, row_bytes_, ahead);
        return;
    }
    const auto kernel = itemsize_ == 2 ? kernels_->transpose2 : kernels_->transpose4;
    for (int64_t i = 0; i < loops_[0].size; ++i)
        for (int64_t j = 0; j < loops_[1].size; ++j)
            kernel(target + i * loops_[0].target + j * loops_[1].target, cols_.target,
                   source + i * loops_[0].source + j * loops_[1].source, rows_.source, rows_.size, cols_.size, ahead,
                   stream_);
}

}  // namespace kvl
