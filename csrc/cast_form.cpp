#include "cast_form.h"

#include <algorithm>

#include "types.h"

namespace kvl {
namespace {

// Sorts axes by their strides on one side; true if they follow each other there without a gap.
bool sort_dense(Axis* axis, int count, int64_t Axis::* stride, int64_t itemsize) {
    std::stable_sort(axis, axis + count, [&](const Axis& a, const Axis& b) { return a.*stride > b.*stride; });
    for (int i = count - 1; i >= 0; itemsize *= axis[i--].size)
        if (axis[i].*stride != itemsize) return false;
    return true;
}

}  // namespace

CastRow::CastRow(const kvl_plane& plane) {
    for (int64_t i = 0; i < plane.dims; ++i) {
        const kvl_axis& axis = plane.dim[i];
        if (axis.size == 1) continue;
        dim[dims++] = {axis.size, axis.source, axis.target};
        size *= axis.size;
    }
    const int64_t from = type_bytes(plane.source_type), to = type_bytes(plane.target_type);
    source_bytes = size * from;
    target_bytes = size * to;
    Axis other[4];
    std::copy(dim, dim + dims, other);
    dense_source = sort_dense(dim, dims, &Axis::source, from);
    dense_target = sort_dense(other, dims, &Axis::target, to);
    const auto same = [](const Axis& a, const Axis& b) { return a.source == b.source && a.target == b.target; };
    if (dense_source)
        dense_target = dense_target && std::equal(dim, dim + dims, other, same);
    else if (dense_target)
        std::copy(other, other + dims, dim);
}

CastForm::CastForm(const kvl_plane& plane, const CastRow& row, const Axis& tokens, int64_t heads, bool by_head,
                   bool one_factor, const Kernels& kernels, bool stream)
    : row_(row), tokens_(tokens.size), heads_(heads), stream_(stream) {
    const int64_t from = type_bytes(plane.source_type), to = type_bytes(plane.target_type);
    cast_ = find_cast_kernels(kernels).cast[plane.source_type - 1][plane.target_type - 1];
    const Axis head = {heads, plane.source.head, plane.target.head};
    const Axis loop[] = {by_head ? head : tokens, by_head ? tokens : head};
    // Axes from the source to scratch memory, and from there to the target.
    Axis in[6], out[6];
    int64_t dense = row.size;
    for (int i = 1; i >= 0; dense *= loop[i--].size) {
        in[i] = {loop[i].size, loop[i].source, dense * from};
        out[i] = {loop[i].size, dense * to, loop[i].target};
    }
    dense = 1;
    for (int i = row.dims - 1; i >= 0; dense *= row.dim[i--].size) {
        in[2 + i] = {row.dim[i].size, row.dim[i].source, dense * from};
        out[2 + i] = {row.dim[i].size, dense * to, row.dim[i].target};
    }
    if (!row.dense_source) gather_.emplace(in, 2 + row.dims, from, kernels, false);
    if (!row.dense_target) scatter_.emplace(out, 2 + row.dims, to, kernels, stream);
    rows_.size = row.size;
    for (int i = 0; i < 2; ++i) {
        rows_.count[i] = loop[i].size;
        rows_.source_step[i] = gather_ ? in[i].target : in[i].source;
        rows_.target_step[i] = scatter_ ? out[i].source : out[i].target;
    }
    // Rows that follow each other on both sides are one, if they have the same factors.
    for (int i = 1; i >= 0 && one_factor; --i)
        if (rows_.source_step[i] == rows_.size * from && rows_.target_step[i] == rows_.size * to) {
            rows_.size *= rows_.count[i];
            rows_.count[i] = 1;
        }
}

CastRows CastForm::gather(const char* source, char* scratch, int64_t ahead) const {
    CastRows rows = rows_;
    rows.source = gather_ ? scratch : source;
    rows.ahead = gather_ ? 0 : ahead;
    if (gather_) gather_->run(scratch, source, ahead);
    return rows;
}

void CastForm::cast(CastRows rows, char* target, char* scratch) const {
    rows.target = scatter_ ? scratch : target;
    rows.stream = stream_ && !scatter_;
    cast_(rows);
    if (scatter_) scatter_->run(target, scratch, 0);
}

}  // namespace kvl
