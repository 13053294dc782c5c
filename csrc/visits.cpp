#include "visits.h"

#include <algorithm>

namespace kvl {

Visits::Visits(const int64_t (&sizes)[kAxes], const int64_t (&steps)[kAxes]) {
    std::copy(sizes, sizes + kAxes, size_);
    std::stable_sort(order_, order_ + kAxes, [&](int a, int b) { return steps[a] > steps[b]; });
}

bool Visits::groups_innermost() const {
    for (int i = kAxes - 1; order_[i] != kGroup; --i)
        if (size_[order_[i]] > 1) return false;
    return true;
}

bool Visits::next() {
    if (ended_) return false;
    if (!begun_) return begun_ = true;
    for (int i = kAxes - 1; i >= 0; --i) {
        if (++at_[order_[i]] < size_[order_[i]]) return true;
        at_[order_[i]] = 0;
    }
    ended_ = true;
    return false;
}

}  // namespace kvl
