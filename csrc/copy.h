// The copy of some of a plan's tokens.
#ifndef KVLINGUA_COPY_H_
#define KVLINGUA_COPY_H_

#include <cstdint>
#include <deque>

#include "kernels.h"
#include "kvlingua.h"
#include "pass.h"

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
    const Kernels& kernels_;
    bool stream_;
    std::deque<Pass> passes_;
};

}  // namespace kvl

#endif  // KVLINGUA_COPY_H_
