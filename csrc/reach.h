// The memory that a plan's planes touch.
#ifndef KVLINGUA_REACH_H_
#define KVLINGUA_REACH_H_

#include <cstdint>
#include <vector>

#include "kvlingua.h"

namespace kvl {

// From a base to the end of the furthest element: heads, the blocks of a view, a page's tokens, and `axis` strides.
class Reach {
  public:
    // Starts with one element of so many bytes.
    explicit Reach(int64_t itemsize) : bytes_(itemsize) {}

    // Adds an axis; the reach is lost if it leaves the address space.
    void add(int64_t size, int64_t stride);
    // Adds a page's tokens, in tiles or not.
    void add_tokens(const kvl_side& side, int64_t page);
    // Bytes, or 0 if the reach is lost.
    uint64_t bytes() const { return lost_ ? 0 : static_cast<uint64_t>(bytes_); }

  private:
    int64_t bytes_;
    bool lost_ = false;
};

// Whether spans are what they must be: none empty, ascending, none overlapping the next.
bool spans_ascend(const kvl_span* span, int64_t spans);

// Whether [begin, end) lies inside one of the spans.
bool spans_hold(const kvl_span* span, int64_t spans, uint64_t begin, uint64_t end);

// Whether something in `one` overlaps something in `other`; sorts both.
bool overlap(std::vector<kvl_span>& one, std::vector<kvl_span>& other);

}  // namespace kvl

#endif  // KVLINGUA_REACH_H_
