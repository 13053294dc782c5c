// A plan made of arbitrary bytes: nearly right mostly, so that the kernels run, and then spoiled here and there.
#ifndef KVLINGUA_TESTS_CASE_H_
#define KVLINGUA_TESTS_CASE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "arenas.h"
#include "kvlingua.h"

// Numbers out of a string of bytes; zeros when it has ended.
class Bytes {
  public:
    Bytes(const uint8_t* data, size_t size) : data_(data), left_(size) {}
    uint64_t take(int bytes);
    int64_t range(int64_t low, int64_t high);  // both included
    bool one_in(int64_t n) { return range(1, n) == n; }
    template <class T, size_t N>
    T pick(const T (&choices)[N]) {
        return choices[range(0, N - 1)];
    }

  private:
    const uint8_t* data_;
    size_t left_;
};

// Arrays that a plan points to have exactly as many elements as it says, each an allocation of its own. Where a count
// is spoiled, it is one that must be refused without a look at the array (beyond 2^40, below 1), or a smaller one.
class Case {
  public:
    Case(const uint8_t* data, size_t size);
    const kvl_plan& plan() const { return plan_; }
    const std::vector<kvl_span>& spans(int side) const { return spans_[side]; }

  private:
    struct Sizes {
        int64_t blocks, head, page, tile;
    };
    using Dims = std::array<kvl_axis, 4>;

    void describe_memory(int side);
    void make_table(int side);
    void make_plane(kvl_plane* plane);
    void make_side(kvl_side* out, int which, int item, int64_t heads, kvl_plane* plane);
    uint64_t place(int side, int64_t reach, int item);
    void spoil();
    int64_t hostile();

    Bytes in_;
    kvl_plan plan_{};
    std::vector<kvl_span> spans_[arenas::kSides];
    std::unique_ptr<int64_t[]> tables_[arenas::kSides];
    std::unique_ptr<kvl_plane[]> planes_;
    std::vector<std::unique_ptr<uint64_t[]>> bases_;
    uint64_t used_[arenas::kSides] = {0, 0};
};

#endif  // KVLINGUA_TESTS_CASE_H_
