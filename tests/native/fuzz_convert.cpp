// The standard entry of fuzzers: bytes become a plan, the library runs it, and memory must be what the header says.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "call.h"
#include "case.h"
#include "fuzz.h"
#include "oracle.h"

namespace {

constexpr int64_t kMostElements = 1 << 15;  // more would be slow, and shows nothing new

Verdict verdict;

void show(const char* name, const kvl_side& side) {
    if (side.base)
        std::fprintf(stderr, "    %s base[0] %#llx, block %lld, head %lld, token %lld, tiles of %lld: %lld\n", name,
                     static_cast<unsigned long long>(side.base[0]), static_cast<long long>(side.block),
                     static_cast<long long>(side.head), static_cast<long long>(side.token),
                     static_cast<long long>(side.tile_tokens), static_cast<long long>(side.tile));
}

void show(const char* name, const kvl_view& view) {
    std::fprintf(stderr, "  %s: %lld blocks, page %lld, start %lld, table", name, static_cast<long long>(view.blocks),
                 static_cast<long long>(view.page), static_cast<long long>(view.start));
    for (int64_t i = 0; view.table && i < view.entries && i < 20; ++i)
        std::fprintf(stderr, " %lld", static_cast<long long>(view.table[i]));
    for (int64_t i = 0; view.span && i < view.spans && i < 20; ++i)
        std::fprintf(stderr, ", [%#llx, %#llx)", static_cast<unsigned long long>(view.span[i].begin),
                     static_cast<unsigned long long>(view.span[i].end));
    std::fprintf(stderr, "\n");
}

void show(const kvl_plan& plan) {
    std::fprintf(stderr, "  %d threads, kernels %d, stream %lld, %lld tokens, %lld heads, %lld layers\n", plan.threads,
                 plan.kernels, static_cast<long long>(plan.stream_bytes), static_cast<long long>(plan.tokens),
                 static_cast<long long>(plan.heads), static_cast<long long>(plan.layers));
    show("source", plan.source);
    show("target", plan.target);
    for (int64_t i = 0; plan.plane && i < plan.planes && i < 4; ++i) {
        const kvl_plane& plane = plan.plane[i];
        std::fprintf(stderr, "  plane: op %d, types %d %d, once %d, factor %g, heads %lld, dims", plane.op,
                     plane.source_type, plane.target_type, plane.once, static_cast<double>(plane.factor),
                     static_cast<long long>(plane.heads));
        for (int64_t d = 0; d < plane.dims && d < 4; ++d)
            std::fprintf(stderr, " %lld (%lld, %lld)", static_cast<long long>(plane.dim[d].size),
                         static_cast<long long>(plane.dim[d].source), static_cast<long long>(plane.dim[d].target));
        std::fprintf(stderr, "\n");
        show("source", plane.source);
        show("target", plane.target);
        show("source's scale", plane.source_scale);
        show("target's scale", plane.target_scale);
    }
}

}  // namespace

const Verdict& last_verdict() { return verdict; }

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const Case made(data, size);
    Oracle oracle(made.plan());
    verdict = {-1, made.plan().kernels, oracle.refusal() != nullptr};
    if (!oracle.refusal() && oracle.elements() > kMostElements) return 0;
    arenas::close();
    for (int side = 0; side < arenas::kSides; ++side) arenas::open(made.spans(side));
    verdict.code = call_library(made.plan());
    arenas::open();
    if (const char* wrong = oracle.judge(verdict.code)) {
        std::fprintf(stderr, "fuzz: the library returned %d: %s\n", verdict.code, wrong);
        show(made.plan());
        std::abort();
    }
    return 0;
}
