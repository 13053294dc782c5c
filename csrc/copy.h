// The copy of some of a plan's tokens, on one thread.
#ifndef KVLINGUA_COPY_H_
#define KVLINGUA_COPY_H_

#include <cstdint>

#include "kernels.h"
#include "kvlingua.h"

namespace kvl {

// Copies tokens [first, last) of all planes and layers of a checked plan. Throws std::bad_alloc before it writes.
void copy_tokens(const kvl_plan& plan, const Kernels& kernels, bool stream, int64_t first, int64_t last);

}  // namespace kvl

#endif  // KVLINGUA_COPY_H_
