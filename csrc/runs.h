// A plan's tokens in runs.
#ifndef KVLINGUA_RUNS_H_
#define KVLINGUA_RUNS_H_

#include <cstdint>
#include <vector>

#include "kvlingua.h"

namespace kvl {

// Consecutive tokens that lie at a fixed step on both sides: a run stays inside a block, or goes on into a block that
// follows in memory.
struct Run {
    int64_t source_block, source_token, target_block, target_token, tokens;
};

// Tokens [first, last) of the plan, in order. Throws std::bad_alloc.
std::vector<Run> find_runs(const kvl_plan& plan, int64_t first, int64_t last);

}  // namespace kvl

#endif  // KVLINGUA_RUNS_H_
