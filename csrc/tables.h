// The block tables of a plan, checked.
#ifndef KVLINGUA_TABLES_H_
#define KVLINGUA_TABLES_H_

#include <cstdint>

#include "kvlingua.h"

namespace kvl {

// Whether the view's table has an existing block for each of so many tokens. Its counts are known to be in range.
int32_t check_table(const kvl_view& view, int64_t tokens);

// KVL_TWICE if a checked table names a block twice within so many tokens. Throws std::bad_alloc.
int32_t check_distinct(const kvl_view& view, int64_t tokens);

}  // namespace kvl

#endif  // KVLINGUA_TABLES_H_
