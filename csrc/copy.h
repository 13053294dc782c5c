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

// Tokens [first, last) of all planes and layers of a checked plan, which must outlive it. All memory that a copy needs
// is allocated when it is made (std::bad_alloc), so that nothing can fail once it writes.
class Copy {
  public:
    Copy(const kvl_plan& plan, const Kernels& kernels, bool stream, int64_t first, int64_t last);

    // Copies, once.
    void run();

  private:
    // One plane, or two that are woven into each other.
    struct Part {
        const kvl_plane* plane;
        int64_t planes;
        std::vector<Nest> nests;   // one for each length of neighbouring runs
        std::vector<size_t> nest;  // for each run the index of its nest
    };

    // One call of a nest.
    struct Item {
        const Nest* nest;
        uint64_t target, source;
    };

    static constexpr int kMostAhead = 16;

    void fill(Part* part, const Kernels& kernels, bool stream);
    void visit(const Part& part, size_t group, int64_t layer, int64_t head);
    void push(const Item& item);
    static void execute(const Item& item, int64_t ahead);

    const kvl_plan& plan_;
    const Kernels& kernels_;
    bool stream_;
    bool by_head_;
    std::vector<Run> runs_;
    std::vector<size_t> groups_;  // the first run of each
    std::vector<Part> parts_;
    Item ring_[kMostAhead] = {};  // items that wait: `waiting_` of them before `next_`
    int ahead_, next_ = 0, waiting_ = 0;
};

}  // namespace kvl

#endif  // KVLINGUA_COPY_H_
