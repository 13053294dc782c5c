// The copy of some of a plan's tokens.
#ifndef KVLINGUA_COPY_H_
#define KVLINGUA_COPY_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "kvlingua.h"
#include "nest.h"
#include "runs.h"

namespace kvl {

// Tokens [first, last) of all layers of those planes whose bits are copied token by token, of a checked plan, which
// must outlive it. All memory that a copy needs is allocated when it is made (std::bad_alloc), so that nothing can fail
// once it writes.
class Copy {
  public:
    Copy(const kvl_plan& plan, const Kernels& kernels, bool stream, int64_t first, int64_t last);

    // Copies, once.
    void run();

  private:
    // A piece of a run in one plane's layer and, by_head_, head.
    struct Place {
        int64_t source, target;  // bytes from the base
        size_t nest;
    };

    // One plane, or two that are woven into each other.
    struct Part {
        const kvl_plane* plane;
        int64_t planes;
        std::vector<Nest> nests;
        std::vector<Place> places;
        std::vector<size_t> groups;  // where in places each group of runs begins; the end at last
    };

    // One call of a nest.
    struct Item {
        const Nest* nest;
        uint64_t target, source;
    };

    static constexpr int kMostAhead = 16;

    void fill(Part* part, const std::vector<Run>& runs);
    void visit(const Part& part, size_t group, int64_t layer, int64_t head);
    void push(const Item& item);
    static void execute(const Item& item, int64_t ahead);

    const kvl_plan& plan_;
    const Kernels& kernels_;
    bool stream_;
    bool by_head_ = false;
    std::vector<Part> parts_;
    Item ring_[kMostAhead] = {};  // items that wait: `waiting_` of them before `next_`
    int ahead_ = 1, next_ = 0, waiting_ = 0;
};

}  // namespace kvl

#endif  // KVLINGUA_COPY_H_
