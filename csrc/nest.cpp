#include "nest.h"

#include <algorithm>
#include <cstdlib>

namespace kvl {
namespace {

// Rows of one element: neither side is contiguous where the other is.
template <typename T>
void copy_elements(char* target, const char* source, const Axis* loops) {
    const Axis &w = loops[0], &x = loops[1], &y = loops[2], &z = loops[3];
    for (int64_t h = 0; h < w.size; ++h)
        for (int64_t i = 0; i < x.size; ++i)
            for (int64_t j = 0; j < y.size; ++j) {
                char* to = target + h * w.target + i * x.target + j * y.target;
                const char* from = source + h * w.source + i * x.source + j * y.source;
                for (int64_t k = 0; k < z.size; ++k, to += z.target, from += z.source)
                    *reinterpret_cast<T*>(to) = *reinterpret_cast<const T*>(from);
            }
}

}  // namespace

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
    for (int i = 0; i < depth; ++i) loops_[kAxes - depth + i] = loop[i];
}

void Nest::run(char* target, const char* source, int64_t ahead) const {
    if (transpose_) {
        // Two of the four axes are taken, so that the first two loops are single steps.
        const auto kernel = itemsize_ == 2 ? kernels_->transpose2 : kernels_->transpose4;
        const Axis &x = loops_[2], &y = loops_[3];
        for (int64_t i = 0; i < x.size; ++i)
            for (int64_t j = 0; j < y.size; ++j)
                kernel(target + i * x.target + j * y.target, cols_.target, source + i * x.source + j * y.source,
                       rows_.source, rows_.size, cols_.size, ahead, stream_);
    } else if (row_bytes_ == itemsize_) {
        (itemsize_ == 2 ? copy_elements<uint16_t> : copy_elements<uint32_t>)(target, source, loops_);
    } else {
        // One axis is the row, so that the first loop is a single step.
        (stream_ ? kernels_->stream_rows : kernels_->rows)(target, source, loops_ + 1, row_bytes_, ahead);
    }
}

}  // namespace kvl
