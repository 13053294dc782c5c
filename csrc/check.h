// A plan, proved to be right before anything is read or written.
#ifndef KVLINGUA_CHECK_H_
#define KVLINGUA_CHECK_H_

#include "kvlingua.h"

namespace kvl {

// KVL_OK, or what is wrong with the plan; all but its scales' values. Throws std::bad_alloc.
int32_t check_plan(const kvl_plan* plan);

}  // namespace kvl

#endif  // KVLINGUA_CHECK_H_
