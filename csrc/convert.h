// The conversion of a checked plan's tokens, by one thread.
#ifndef KVLINGUA_CONVERT_H_
#define KVLINGUA_CONVERT_H_

#include <cstdint>

#include "kvlingua.h"

namespace kvl {

// Bytes that a plan writes.
int64_t written_bytes(const kvl_plan& plan);

// Whether that is so much that the writes bypass the cache.
bool streams(const kvl_plan& plan);

// Converts tokens [first, last). If it returns anything but KVL_OK, nothing was written.
int32_t convert_tokens(const kvl_plan& checked, int64_t first, int64_t last, bool stream);

}  // namespace kvl

#endif  // KVLINGUA_CONVERT_H_
