#include "launches.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "platform.h"

namespace kvl {
namespace {

// Grid blocks of a launch are fewer. HIP has no more than 2^32 threads; CUDA takes more, but never needs them.
#if defined(KVL_MOST_BLOCKS)  // of tests: so few that most plans take several launches
constexpr int64_t kMostBlocks = KVL_MOST_BLOCKS;
#else
constexpr int64_t kMostBlocks = (int64_t{1} << 32) / kThreads - 1;
#endif

// The words of one launch.
class Builder {
  public:
    Builder(const kvl_plan& plan, const Range& range, const Tuning& tuning);

    bool fits(size_t most_words) const { return words_.size() <= most_words && blocks_ < kMostBlocks; }
    // How many of the words are block numbers, of which there are fewer for fewer tokens.
    size_t table_words() const { return table_words_; }
    bool empty() const { return parts_.empty(); }
    Launch launch(uint64_t verdict);

  private:
    void place_bases(const kvl_side& side, Side* out);
    uint32_t place_table(const kvl_view& view);

    const Range& range_;
    std::vector<Part> parts_;
    std::vector<uint64_t> words_;
    int64_t blocks_ = 0;
    size_t lists_ = 0, table_words_ = 0;
    WorkHead head_{};
};

Builder::Builder(const kvl_plan& plan, const Range& range, const Tuning& tuning) : range_(range) {
    std::vector<Made> made;
    for (int64_t i = range.plane; i < range.plane_end; ++i)
        if (!range.judges || compares(plan.plane[i])) made.push_back(make_part(plan, plan.plane[i], range, tuning));
    if (made.empty()) return;
    words_.resize(made.size() * kPartWords);
    for (Made& one : made) {
        for (int side = 0; side < kSides; ++side)
            if (one.side[side]) place_bases(*one.side[side], &one.part.side[side]);
        one.part.first_block = static_cast<uint32_t>(blocks_);
        blocks_ = std::min(blocks_ + one.blocks, kMostBlocks);
        parts_.push_back(one.part);
    }
    std::memcpy(words_.data(), parts_.data(), parts_.size() * sizeof(Part));
    const size_t before = words_.size();
    head_.source = find_places(plan.source, range);
    head_.target = find_places(plan.target, range);
    head_.source.table = place_table(plan.source);
    head_.target.table = place_table(plan.target);
    table_words_ = words_.size() - before;
}

// Addresses at a fixed step need no list, and where distances are equal a list serves several sides.
void Builder::place_bases(const kvl_side& side, Side* out) {
    const uint64_t* base = side.base + range_.layer;
    const size_t layers = static_cast<size_t>(range_.layers());
    out->base = base[0];
    out->step = layers > 1 ? base[1] - base[0] : 0;
    std::vector<uint64_t> distance(layers);
    bool even = true;
    for (size_t i = 0; i < layers; ++i) {
        distance[i] = base[i] - base[0];
        even &= distance[i] == i * out->step;
    }
    if (even) return;
    for (size_t at = words_.size() - lists_; at < words_.size(); at += layers)
        if (std::equal(distance.begin(), distance.end(), words_.begin() + static_cast<std::ptrdiff_t>(at))) {
            out->list = static_cast<uint32_t>(at);
            return;
        }
    out->list = static_cast<uint32_t>(words_.size());
    words_.insert(words_.end(), distance.begin(), distance.end());
    lists_ += layers;
}

// Where the table's entries are that the range needs, in half words.
uint32_t Builder::place_table(const kvl_view& view) {
    const int64_t first = (view.start + range_.first) / view.page, last = (view.start + range_.last - 1) / view.page;
    const size_t begin = words_.size();
    words_.resize(begin + static_cast<size_t>(last - first) / 2 + 1);
    for (int64_t i = first; i <= last; ++i) {
        if (view.table[i] > UINT32_MAX) throw TooLarge();
        const auto number = static_cast<uint32_t>(view.table[i]);
        std::memcpy(reinterpret_cast<char*>(words_.data() + begin) + sizeof(number) * static_cast<size_t>(i - first),
                    &number, sizeof(number));
    }
    return static_cast<uint32_t>(2 * begin);
}

Launch Builder::launch(uint64_t verdict) {
    head_.verdict = verdict;
    head_.parts = static_cast<uint32_t>(parts_.size());
    head_.judges = range_.judges;
    return {head_, std::move(words_), static_cast<uint32_t>(blocks_)};
}

class Cutter {
  public:
    Cutter(const kvl_plan& plan, uint64_t verdict, const Tuning& tuning, size_t most_words)
        : plan_(plan), verdict_(verdict), tuning_(tuning), most_words_(most_words) {}

    void cut(const Range& range);
    std::vector<Launch> launches;

  private:
    void halve(const Range& range, int64_t Range::* begin, int64_t Range::* end, int64_t overlap);

    const kvl_plan& plan_;
    uint64_t verdict_;
    const Tuning& tuning_;
    size_t most_words_;
};

void Cutter::halve(const Range& range, int64_t Range::* begin, int64_t Range::* end, int64_t overlap) {
    const int64_t middle = range.*begin + (range.*end - range.*begin) / 2;
    Range lower = range, upper = range;
    lower.*end = middle;
    upper.*begin = middle - overlap;
    cut(lower);
    cut(upper);
}

// One launch, or two halves of it: of the tokens where their tables take the room, else of the planes, else the layers.
void Cutter::cut(const Range& range) {
    Builder builder(plan_, range, tuning_);
    if (builder.empty()) return;
    if (builder.fits(most_words_)) {
        launches.push_back(builder.launch(verdict_));
        return;
    }
    // A token more is looked at, so that values which meet in a block are compared from one launch to the next, too.
    const int64_t overlap = range.judges ? 1 : 0;
    const bool tokens = range.tokens() > 2 + overlap;
    if (tokens && 2 * builder.table_words() >= most_words_)
        halve(range, &Range::first, &Range::last, overlap);
    else if (range.plane_end - range.plane > 1)
        halve(range, &Range::plane, &Range::plane_end, 0);
    else if (range.layers() > 1)
        halve(range, &Range::layer, &Range::layer_end, 0);
    else if (tokens)
        halve(range, &Range::first, &Range::last, overlap);
    else
        throw TooLarge();
}

}  // namespace

std::vector<Launch> find_launches(const kvl_plan& plan, uint64_t verdict, const Tuning& tuning, size_t most_words) {
    Cutter cutter(plan, verdict, tuning, most_words);
    for (const bool judges : {true, false}) cutter.cut({0, plan.tokens, 0, plan.layers, 0, plan.planes, judges});
    return std::move(cutter.launches);
}

}  // namespace kvl
