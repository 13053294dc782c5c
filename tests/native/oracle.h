// What csrc/kvlingua.h says of a plan, once more and as plainly as possible: what must be refused, and what is written.
#ifndef KVLINGUA_TESTS_ORACLE_H_
#define KVLINGUA_TESTS_ORACLE_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "arenas.h"
#include "kvlingua.h"

// Made before the call, since it keeps what the memory held.
class Oracle {
  public:
    explicit Oracle(const kvl_plan& plan);

    // Why the plan must be refused, or null.
    const char* refusal() const { return refusal_; }

    // Elements that the plan moves, if it isn't refused.
    int64_t elements() const { return elements_; }

    // What is wrong with memory after a call that returned `code`, or null.
    const char* judge(int32_t code);

  private:
    using Reach = __int128;
    struct Place {
        int64_t block, token;  // of a token
    };

    const char* find_refusal();
    const char* refuse_view(const kvl_view& view) const;
    const char* refuse_plane(const kvl_plane& plane);
    const char* refuse_side(const kvl_view& view, const kvl_side& side, const kvl_plane& plane, int which) const;
    Place place(const kvl_view& view, int64_t token) const;
    static uint64_t offset(const kvl_side& side, Place place, int64_t head);
    void each_row(const kvl_plane& plane, const std::function<void(int64_t layer, int64_t token, int64_t head)>& row);
    void each_element(const kvl_plane& plane, const std::function<void(uint64_t source, uint64_t target)>& element);
    uint32_t read(uint64_t address, int bytes, uint8_t whose);
    void write(uint64_t address, int bytes, uint32_t bits);
    bool run_plane(const kvl_plane& plane);
    void run_row(const kvl_plane& plane, uint64_t source, uint64_t target, uint64_t source_scale,
                 uint64_t target_scale);

    const kvl_plan& plan_;
    const char* refusal_;
    int64_t elements_ = 0;
    std::vector<uint8_t> before_[arenas::kSides], after_[arenas::kSides];
    std::vector<uint8_t> reads_[arenas::kSides];   // of each byte: by which sides it is read
    std::vector<uint8_t> writes_[arenas::kSides];  // of each byte: how often it is written, at most 2
};

#endif  // KVLINGUA_TESTS_ORACLE_H_
