#include "places.h"

#include <algorithm>

namespace kvl {

Places::Places(const kvl_side& source, const kvl_side& target, const std::vector<Axis>& axes, int64_t itemsize,
               const Kernels& kernels, bool stream)
    : source_(source),
      target_(target),
      axes_(axes),
      itemsize_(itemsize),
      token_bytes_(itemsize),
      kernels_(&kernels),
      stream_(stream) {
    for (const Axis& axis : axes) token_bytes_ *= axis.size;
}

Nest Places::nest_of(int64_t tokens) const {
    const Run run{0, 0, 0, 0, tokens};
    Piece piece;
    Pieces(run, source_, target_).next(&piece);
    return make_nest(piece);
}

void Places::add(const Run& run, int64_t most) {
    Run part = run;
    for (int64_t left = run.tokens; left; left -= part.tokens) {
        part.tokens = std::min(left, most);
        Pieces pieces(part, source_, target_);
        for (Piece piece; pieces.next(&piece);) places_.push_back({piece.source, piece.target, find_form(piece)});
        part.source_token += part.tokens;
        part.target_token += part.tokens;
    }
}

Nest Places::make_nest(const Piece& piece) const {
    std::vector<Axis> axes(piece.axis, piece.axis + Piece::kAxes);
    axes.insert(axes.end(), axes_.begin(), axes_.end());
    return Nest(axes.data(), static_cast<int>(axes.size()), itemsize_, *kernels_, stream_);
}

bool Places::is_dense(const Piece& piece) const {
    int64_t bytes = token_bytes_, reach = itemsize_;
    for (const Axis& axis : axes_) reach += (axis.size - 1) * axis.source;
    for (const Axis& axis : piece.axis) {
        bytes *= axis.size;
        reach += (axis.size - 1) * axis.source;
    }
    return bytes == reach;
}

// There are few forms of pieces, and mostly one has the form of its predecessor.
uint32_t Places::find_form(const Piece& piece) {
    const auto same = [&](const Form& form) {
        return std::equal(piece.axis, piece.axis + Piece::kAxes, form.piece.axis, [](const Axis& x, const Axis& y) {
            return x.size == y.size && x.source == y.source && x.target == y.target;
        });
    };
    if (!places_.empty() && same(forms_[places_.back().form])) return places_.back().form;
    const auto known = std::find_if(forms_.begin(), forms_.end(), same);
    if (known != forms_.end()) return static_cast<uint32_t>(known - forms_.begin());
    forms_.push_back({piece, make_nest(piece), is_dense(piece)});
    return static_cast<uint32_t>(forms_.size() - 1);
}

}  // namespace kvl
