#include "tables.h"

#include <algorithm>
#include <vector>

namespace kvl {
namespace {

constexpr int64_t kSparse = 2048;  // blocks per named one: with fewer, bits are quicker than sorting

}  // namespace

int32_t check_table(const kvl_view& view, int64_t tokens) {
    if (tokens == 0) return KVL_OK;
    if (!view.table) return KVL_NULL;
    const int64_t first = view.start / view.page, last = (view.start + tokens - 1) / view.page;
    if (last >= view.entries) return KVL_TABLE;
    bool right = true;
    for (int64_t i = first; i <= last; ++i)
        right &= static_cast<uint64_t>(view.table[i]) < static_cast<uint64_t>(view.blocks);
    return right ? KVL_OK : KVL_TABLE;
}

int32_t check_distinct(const kvl_view& view, int64_t tokens) {
    if (tokens == 0) return KVL_OK;
    const int64_t* begin = view.table + view.start / view.page;
    const int64_t* end = view.table + (view.start + tokens - 1) / view.page + 1;
    const auto [least, most] = std::minmax_element(begin, end);
    const int64_t range = *most - *least + 1;
    if (range / kSparse > end - begin) {
        std::vector<int64_t> sorted(begin, end);
        std::sort(sorted.begin(), sorted.end());
        return std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end() ? KVL_OK : KVL_TWICE;
    }
    std::vector<uint64_t> seen(static_cast<size_t>(range / 64 + 1));
    for (const int64_t* block = begin; block < end; ++block) {
        const int64_t bit = *block - *least;
        uint64_t& word = seen[static_cast<size_t>(bit / 64)];
        if (word >> (bit % 64) & 1) return KVL_TWICE;
        word |= uint64_t{1} << (bit % 64);
    }
    return KVL_OK;
}

}  // namespace kvl
