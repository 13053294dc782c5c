#include "copy.h"

#include <cstdlib>

#include "planes.h"

namespace kvl {
namespace {

// Whether a part is copied in the same pass as the first one of it: neither is staged, and they are alike in what makes
// up the order, so that planes that share blocks or follow each other are read in the order in which they lie.
bool together(const Part& one, const Part& other) {
    return !one.staging.tokens && !other.staging.tokens && one.heads == other.heads &&
           one.plane->heads == other.plane->heads && one.plane->source.block == other.plane->source.block;
}

}  // namespace

Copy::Copy(const kvl_plan& plan, const Kernels& kernels, bool stream, int64_t first, int64_t last)
    : kernels_(kernels), stream_(stream) {
    const Table source = source_table(plan, first, last), target = target_table(plan, first, last);
    std::vector<Part> parts;
    const auto end_pass = [&] {
        if (!parts.empty()) passes_.emplace_back(plan, std::move(parts), source, target, first, last);
        parts.clear();
    };
    const kvl_plane* end = plan.plane + plan.planes;
    for (const kvl_plane* plane = plan.plane; plane < end;) {
        if (!is_copied(*plane)) {
            ++plane;
            continue;
        }
        Part part(plan, *plane, kernels, stream, source, target);
        if (!parts.empty() && !together(parts[0], part)) end_pass();
        plane += part.planes;
        parts.push_back(std::move(part));
    }
    end_pass();
}

void Copy::run() {
    for (Pass& pass : passes_) pass.run();
    if (stream_ && !passes_.empty()) kernels_.fence();
}

}  // namespace kvl
