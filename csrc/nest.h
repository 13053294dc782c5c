// The loops over one piece of tokens, put into an order that is good for memory.
#ifndef KVLINGUA_NEST_H_
#define KVLINGUA_NEST_H_

#include <cstdint>

#include "kernels.h"

namespace kvl {

// A block of elements with any axes. They are sorted in the source's order and joined where both sides allow it; what
// remains is a copy of rows, or a transposition of units that are contiguous on both sides, inside loops.
class Nest {
  public:
    static constexpr int kAxes = 9;  // woven planes, heads, three of tokens, four of dims

    Nest(const Axis* axes, int count, int64_t itemsize, const Kernels& kernels, bool stream);

    // Copies one block. What lies `ahead` bytes from its source is fetched into the cache meanwhile.
    void run(char* target, const char* source, int64_t ahead) const;

    // Whether units change places, rather than rows being copied.
    bool transposes() const { return transpose_ || pairs_; }

    // Whether many such blocks can be copied in one call: it is short, and blocks may be too.
    bool together() const { return placed_rows_; }
    // Copies a block at each place; what is `ahead` places later, which is there, is fetched meanwhile.
    void run_all(char* target, const char* source, const Place* place, size_t count, size_t ahead) const {
        placed_rows_(target, source, place, count, loops_, unit_, ahead);
    }
    int64_t row_bytes() const { return unit_; }

  private:
    bool find_transposition();
    void find_pairs(bool zip);
    void loop(int depth, char* target, const char* source, int64_t ahead) const;

    const Kernels* kernels_;
    bool stream_;
    int depth_ = 0;      // loops that are left to go through here
    Axis loops_[kAxes];  // slowest first; behind those that are left, three for the rows
    int64_t unit_;       // bytes that are contiguous on both sides
    Rows rows_kernel_ = nullptr;
    PlacedRows placed_rows_ = nullptr;
    Transpose transpose_ = nullptr;  // if set, instead of rows
    Pairs pairs_ = nullptr;          // or this, if either side has only two rows or columns
    bool zip_ = false;               // which of pairs
    Axis blocks_{1, 0, 0};           // of pairs
    Axis rows_{1, 0, 0};             // of a transposition: the axis that follows the unit in the target
    Axis cols_{1, 0, 0};             // of a transposition: the axis that follows the unit in the source
};

}  // namespace kvl

#endif  // KVLINGUA_NEST_H_
