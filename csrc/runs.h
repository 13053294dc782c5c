// Tokens in runs.
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

// Where one side's tokens are.
struct Table {
    kvl_view view;
    bool adjoins;     // whether a block's last token is followed by the first one of the block behind it
    int64_t typical;  // tokens that lie in one piece, on average
};

// The table of one side of a plan, for tokens [first, last).
Table source_table(const kvl_plan& plan, int64_t first, int64_t last);
Table target_table(const kvl_plan& plan, int64_t first, int64_t last);

// Tokens [first, last), counted from the starts of both views, in order. Throws std::bad_alloc.
std::vector<Run> find_runs(const Table& source, const Table& target, int64_t first, int64_t last);

// The same for a plan as a whole.
std::vector<Run> find_runs(const kvl_plan& plan, int64_t first, int64_t last);

// Puts runs into the order in which the source's blocks lie in memory: tables are full of blocks that were freed and
// taken again in any order, backwards among them, and only reading on is quick.
void sort_by_source(std::vector<Run>* runs);

}  // namespace kvl

#endif  // KVLINGUA_RUNS_H_
