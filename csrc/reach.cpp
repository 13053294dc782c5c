#include "reach.h"

#include <algorithm>

namespace kvl {

void Reach::add(int64_t size, int64_t stride) {
    int64_t more = 0;
    lost_ = lost_ || __builtin_mul_overflow(size - 1, stride, &more) || __builtin_add_overflow(bytes_, more, &bytes_);
}

void Reach::add_tokens(const kvl_side& side, int64_t page) {
    const int64_t tile = side.tile_tokens;
    if (!tile || page <= tile) return add(page, side.token);
    // The furthest token is the last of the last whole tile, or of what is left behind it.
    Reach whole = *this, rest = *this;
    whole.add(page / tile, side.tile);
    whole.add(tile, side.token);
    if (page % tile) {
        rest.add(page / tile + 1, side.tile);
        rest.add(page % tile, side.token);
    }
    lost_ = whole.lost_ || rest.lost_;
    bytes_ = std::max(whole.bytes_, rest.bytes_);
}

bool spans_ascend(const kvl_span* span, int64_t spans) {
    for (int64_t i = 0; i < spans; ++i)
        if (span[i].begin >= span[i].end || (i && span[i - 1].end > span[i].begin)) return false;
    return true;
}

bool spans_hold(const kvl_span* span, int64_t spans, uint64_t begin, uint64_t end) {
    const auto above = [](uint64_t address, const kvl_span& s) { return address < s.begin; };
    const kvl_span* after = std::upper_bound(span, span + spans, begin, above);
    return after != span && end <= after[-1].end;
}

bool overlap(std::vector<kvl_span>& one, std::vector<kvl_span>& other) {
    const auto lower = [](const kvl_span& a, const kvl_span& b) { return a.begin < b.begin; };
    std::sort(one.begin(), one.end(), lower);
    std::sort(other.begin(), other.end(), lower);
    uint64_t one_end = 0, other_end = 0;  // how far those reach that begin below the next
    for (size_t i = 0, j = 0; i < one.size() || j < other.size();) {
        if (j == other.size() || (i < one.size() && one[i].begin < other[j].begin)) {
            if (one[i].begin < other_end) return true;
            one_end = std::max(one_end, one[i++].end);
        } else {
            if (other[j].begin < one_end) return true;
            other_end = std::max(other_end, other[j++].end);
        }
    }
    return false;
}

}  // namespace kvl
