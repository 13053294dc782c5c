// The entry: a plan is checked, kernels are chosen, the tokens are shared out among threads.
#include "convert.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <new>

#include "cast.h"
#include "check.h"
#include "copy.h"
#include "kernels.h"
#include "scales.h"
#include "team.h"
#include "types.h"

namespace kvl {
namespace {

// From here on writes bypass the cache: about a core's second-level cache. With 16 MiB, 8 MiB that weren't in the cache
// took 100 to 300 us more than memcpy, with 1 MiB under 60 (Zen 5, benchmarks/convert.py --only chunk).
constexpr int64_t kStreamBytes = 1 << 20;
constexpr int64_t kThreadBytes = 1 << 20;  // less than this isn't worth a thread

// What one thread does: everything that can fail when it is made, the rest when it is run.
struct Share {
    Share(const kvl_plan& plan, const Kernels& kernels, bool stream, int64_t first, int64_t last)
        : copy(plan, kernels, stream, first, last), cast(plan, kernels, stream, first, last) {}
    void run() {
        copy.run();
        cast.run();
    }

    Copy copy;
    Cast cast;
};

int32_t convert_shares(const kvl_plan& plan, int64_t first, int64_t last, int64_t count, bool stream) {
    const Kernels* kernels = find_kernels(plan.kernels);
    if (!kernels) return KVL_UNSUPPORTED;
    if (first == last) return KVL_OK;
    const int64_t tokens = last - first;
    const auto begin = [&](int64_t i) { return first + tokens / count * i + tokens % count * i / count; };
    std::deque<Share> shares;
    for (int64_t i = 0; i < count; ++i) shares.emplace_back(plan, *kernels, stream, begin(i), begin(i + 1));
    const int32_t wrong = check_scales(plan, first, last);
    if (wrong) return wrong;
    convert_once(plan, *kernels, first, last);
    std::atomic<size_t> next{0};
    run_team(count, [&](int64_t) {
        for (size_t i; (i = next.fetch_add(1)) < shares.size();) shares[i].run();
    });
    return KVL_OK;
}

int32_t convert(const kvl_plan* plan) {
    const int32_t wrong = check_plan(plan);
    if (wrong) return wrong;
    const int64_t threads = std::min<int64_t>({plan->threads, written_bytes(*plan) / kThreadBytes, plan->tokens});
    return convert_shares(*plan, 0, plan->tokens, std::max<int64_t>(threads, 1), streams(*plan));
}

}  // namespace

int64_t written_bytes(const kvl_plan& plan) {
    int64_t bytes = 0;
    for (const kvl_plane* plane = plan.plane; plane < plan.plane + plan.planes; ++plane) {
        int64_t row = plane->heads * type_bytes(plane->target_type);
        for (int64_t i = 0; i < plane->dims; ++i) row *= plane->dim[i].size;
        bytes += row;
    }
    return bytes * plan.layers * plan.tokens;
}

bool streams(const kvl_plan& plan) {
    return written_bytes(plan) >= (plan.stream_bytes ? plan.stream_bytes : kStreamBytes);
}

int32_t convert_tokens(const kvl_plan& checked, int64_t first, int64_t last, bool stream) {
    try {
        return convert_shares(checked, first, last, 1, stream);
    } catch (const std::bad_alloc&) {
        return KVL_MEMORY;
    }
}

}  // namespace kvl

int32_t kvl_abi_version(void) { return KVL_ABI_VERSION; }

const char* kvl_kernels(void) { return kvl::find_kernels(KVL_BEST)->name; }

int32_t kvl_convert(const kvl_plan* plan) {
    try {
        return kvl::convert(plan);
    } catch (const std::bad_alloc&) {
        return KVL_MEMORY;
    }
}
