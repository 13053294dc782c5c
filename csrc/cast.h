// The casts of some of a plan's tokens.
#ifndef KVLINGUA_CAST_H_
#define KVLINGUA_CAST_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include "cast_factors.h"
#include "cast_form.h"
#include "kernels.h"
#include "kvlingua.h"

namespace kvl {

// Tokens [first, last) of all layers of those planes whose numbers are cast token by token, of a checked plan, which
// must outlive it. All memory that is needed is allocated when it is made (std::bad_alloc), so that nothing can fail
// once it writes.
class Cast {
  public:
    Cast(const kvl_plan& plan, const Kernels& kernels, bool stream, int64_t first, int64_t last);

    // Casts, once.
    void run();

  private:
    // Some tokens and heads of each layer, small enough for the first-level cache.
    struct Block {
        int64_t source, target;  // bytes from the base
        int64_t token, head;     // the first ones; token 0 is the first of this cast
        size_t form;
    };

    struct Part {
        Part(const kvl_plan& plan, const kvl_plane& plane, const Kernels& kernels, int64_t first, int64_t last);

        const kvl_plane* plane;
        CastRow row;
        CastFactors factors;
        bool by_head;  // a head's tokens follow each other in the source, rather than a token's heads
        std::vector<CastForm> forms;
        std::vector<Block> blocks;
        size_t ahead = 1;  // so many blocks further on, the source is fetched
    };

    // A line of the cache, to allocate memory by.
    struct alignas(64) Line {
        char bytes[64];
    };

    void cut(Part* part, int64_t first, int64_t last, bool stream);
    void add_blocks(Part* part, int64_t token, const Axis& tokens, int64_t source, int64_t target, bool stream);
    size_t woven_parts(size_t first) const;
    void run_parts(size_t first, size_t count);

    const kvl_plan& plan_;
    const Kernels& kernels_;
    bool stream_;
    std::deque<Part> parts_;
    std::vector<Line> source_scratch_, target_scratch_;
};

}  // namespace kvl

#endif  // KVLINGUA_CAST_H_
