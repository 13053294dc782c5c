// A plan, executed: tokens are split into runs that stay inside a block on both sides, each run goes to a Nest.
#include <cstdlib>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "check.h"
#include "kernels.h"
#include "kvlingua.h"
#include "nest.h"

namespace kvl {
namespace {

constexpr int64_t kStreamBytes = 16 << 20;  // about where an output no longer fits in the last-level cache
constexpr int64_t kThreadBytes = 1 << 20;   // less than this isn't worth a thread
constexpr int64_t kAheadBytes = 8 << 10;    // how far ahead of the copy memory is fetched, at least

// Consecutive tokens that lie at a fixed step on both sides.
struct Run {
    int64_t source_block, source_token, target_block, target_token, tokens;
};

// Whether a block's last token is followed by the next block's first one, in all planes.
bool blocks_adjoin(const kvl_plan& plan, const kvl_tokens& tokens, const kvl_side kvl_plane::* side) {
    for (int64_t i = 0; i < plan.planes; ++i)
        if ((plan.plane[i].*side).block != tokens.page * (plan.plane[i].*side).token) return false;
    return true;
}

std::vector<Run> find_runs(const kvl_plan& plan, int64_t first, int64_t last) {
    const kvl_tokens &source = plan.source, &target = plan.target;
    const bool source_adjoins = blocks_adjoin(plan, source, &kvl_plane::source);
    const bool target_adjoins = blocks_adjoin(plan, target, &kvl_plane::target);
    // How many tokens from position p on lie in one piece, given that no more than `most` are wanted.
    const auto piece = [](const kvl_tokens& side, bool adjoins, int64_t p, int64_t most) {
        int64_t n = side.page - p % side.page;
        while (adjoins && n < most && side.table[(p + n) / side.page] == side.table[(p + n) / side.page - 1] + 1)
            n += side.page;
        return n < most ? n : most;
    };
    std::vector<Run> runs;
    for (int64_t t = first; t < last;) {
        const int64_t s = source.start + t, d = target.start + t;
        int64_t n = piece(source, source_adjoins, s, last - t);
        n = piece(target, target_adjoins, d, n);
        runs.push_back(
            {source.table[s / source.page], s % source.page, target.table[d / target.page], d % target.page, n});
        t += n;
    }
    return runs;
}

// How many planes from `index` on can go together as one more axis: the same strides, the same distance from plane to
// plane in every layer, and woven into each other's blocks on one side, so that visiting them apart would read or write
// the same pages twice.
int64_t woven_planes(const kvl_plan& plan, int64_t index) {
    const kvl_plane& a = plan.plane[index];
    if (index + 1 >= plan.planes) return 1;
    const kvl_plane& b = plan.plane[index + 1];
    const auto same = [](const kvl_side& x, const kvl_side& y) {
        return x.block == y.block && x.head == y.head && x.token == y.token && x.dim == y.dim;
    };
    if (a.width != b.width || !same(a.source, b.source) || !same(a.target, b.target)) return 1;
    const int64_t source_step = static_cast<int64_t>(b.source.base[0] - a.source.base[0]);
    const int64_t target_step = static_cast<int64_t>(b.target.base[0] - a.target.base[0]);
    for (int64_t layer = 1; layer < plan.layers; ++layer)
        if (static_cast<int64_t>(b.source.base[layer] - a.source.base[layer]) != source_step ||
            static_cast<int64_t>(b.target.base[layer] - a.target.base[layer]) != target_step)
            return 1;
    const bool woven = std::llabs(source_step) < a.source.block || std::llabs(target_step) < a.target.block;
    return woven ? 2 : 1;
}

// Copies tokens [first, last) of all planes and layers.
void copy(const kvl_plan& plan, const Kernels& kernels, bool stream, int64_t first, int64_t last) {
    const std::vector<Run> runs = find_runs(plan, first, last);
    const int64_t count = static_cast<int64_t>(runs.size());
    for (int64_t index = 0, together = 1; index < plan.planes; index += together) {
        together = woven_planes(plan, index);
        const kvl_plane& plane = plan.plane[index];
        const kvl_side &s = plane.source, &t = plane.target;
        const bool two = together > 1;
        const int64_t source_step = two ? static_cast<int64_t>(plan.plane[index + 1].source.base[0] - s.base[0]) : 0;
        const int64_t target_step = two ? static_cast<int64_t>(plan.plane[index + 1].target.base[0] - t.base[0]) : 0;
        const auto nest_of = [&](int64_t tokens) {
            const Axis axes[] = {{together, source_step, target_step},
                                 {plan.heads, s.head, t.head},
                                 {tokens, s.token, t.token},
                                 {plane.width, s.dim, t.dim}};
            return Nest(axes, plan.itemsize, kernels, stream);
        };
        const int64_t token_bytes = together * plan.heads * plane.width * plan.itemsize;
        int64_t shape = 0;  // the number of tokens that `nest` is for
        Nest nest;
        for (int64_t layer = 0; layer < plan.layers; ++layer) {
            for (int64_t i = 0; i < count; ++i) {
                const Run& run = runs[static_cast<size_t>(i)];
                if (run.tokens != shape) nest = nest_of(shape = run.tokens);
                const int64_t from = run.source_block * s.block + run.source_token * s.token;
                const int64_t to = run.target_block * t.block + run.target_token * t.token;
                const int64_t skip = kAheadBytes / (run.tokens * token_bytes) + 1;
                int64_t ahead = kAheadBytes;
                if (i + skip < count) {
                    const Run& next = runs[static_cast<size_t>(i + skip)];
                    ahead = next.source_block * s.block + next.source_token * s.token - from;
                }
                nest.run(reinterpret_cast<char*>(t.base[layer] + static_cast<uint64_t>(to)),
                         reinterpret_cast<const char*>(s.base[layer] + static_cast<uint64_t>(from)), ahead);
            }
        }
    }
    if (stream) kernels.fence();
}

void copy_in_threads(const kvl_plan& plan, const Kernels& kernels, bool stream, int64_t threads) {
    const auto share = [&](int64_t i) { return plan.tokens / threads * i + plan.tokens % threads * i / threads; };
    std::vector<std::thread> others;
    std::vector<int> failed(static_cast<size_t>(threads), 0);
    int64_t started = 1;
    try {
        others.reserve(static_cast<size_t>(threads));
        for (; started < threads; ++started)
            others.emplace_back([&, i = started] {
                try {
                    copy(plan, kernels, stream, share(i), share(i + 1));
                } catch (const std::bad_alloc&) {
                    failed[static_cast<size_t>(i)] = 1;
                }
            });
    } catch (const std::system_error&) {  // no more threads to be had: the rest is done here
    }
    try {
        copy(plan, kernels, stream, 0, share(1));
        if (started < threads) copy(plan, kernels, stream, share(started), plan.tokens);
    } catch (const std::bad_alloc&) {
        failed[0] = 1;
    }
    for (std::thread& thread : others) thread.join();
    for (int one : failed)
        if (one) throw std::bad_alloc();
}

int32_t convert(const kvl_plan* plan) {
    const int32_t wrong = check_plan(plan);
    if (wrong) return wrong;
    const Kernels* kernels = find_kernels(plan->kernels);
    if (!kernels) return KVL_UNSUPPORTED;
    if (plan->tokens == 0) return KVL_OK;
    int64_t bytes = 0;
    for (int64_t i = 0; i < plan->planes; ++i) bytes += plan->plane[i].width;
    bytes *= plan->itemsize * plan->heads * plan->layers * plan->tokens;
    const bool stream = bytes >= (plan->stream_bytes ? plan->stream_bytes : kStreamBytes);
    int64_t threads = bytes / kThreadBytes < plan->threads ? bytes / kThreadBytes : plan->threads;
    if (threads > plan->tokens) threads = plan->tokens;
    if (threads > 1)
        copy_in_threads(*plan, *kernels, stream, threads);
    else
        copy(*plan, *kernels, stream, 0, plan->tokens);
    return KVL_OK;
}

}  // namespace
}  // namespace kvl

int32_t kvl_abi_version(void) { return KVL_ABI_VERSION; }

const char* kvl_kernels(void) { return kvl::find_kernels(KVL_BEST)->name; }

const char* kvl_message(int32_t code) {
    switch (code) {
        case KVL_OK:
            return "success";
        case KVL_NULL:
            return "a pointer is null";
        case KVL_SIZE:
            return "a count or size is out of range";
        case KVL_STRIDE:
            return "a stride or address is negative, no multiple of the item size, or too large";
        case KVL_TABLE:
            return "a block table is shorter than its tokens need, or names a block that doesn't exist";
        case KVL_MEMORY:
            return "no memory for the library's own tables";
        case KVL_UNSUPPORTED:
            return "this CPU lacks the kernels that were asked for";
        default:
            return "unknown error";
    }
}

int32_t kvl_convert(const kvl_plan* plan) {
    try {
        return kvl::convert(plan);
    } catch (const std::bad_alloc&) {
        return KVL_MEMORY;
    }
}
