// The entry: a plan is checked, kernels are chosen, the tokens are shared out among threads.
#include <algorithm>
#include <exception>
#include <new>
#include <thread>
#include <vector>

#include "check.h"
#include "copy.h"
#include "kernels.h"
#include "kvlingua.h"

namespace kvl {
namespace {

constexpr int64_t kStreamBytes = 16 << 20;  // about where an output no longer fits in the last-level cache
constexpr int64_t kThreadBytes = 1 << 20;   // less than this isn't worth a thread

// Runs the first copy here and the others in threads of their own.
void run_all(std::vector<Copy>& copies) {
    std::vector<std::thread> threads;
    threads.reserve(copies.size());
    size_t next = 1;
    try {
        for (; next < copies.size(); ++next) threads.emplace_back([&copy = copies[next]] { copy.run(); });
    } catch (const std::exception&) {  // no more threads, or no memory for one: the rest is done here
    }
    copies[0].run();
    for (; next < copies.size(); ++next) copies[next].run();
    for (std::thread& thread : threads) thread.join();
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
    threads = std::max<int64_t>(1, std::min(threads, plan->tokens));
    std::vector<Copy> copies;
    copies.reserve(static_cast<size_t>(threads));
    const auto share = [&](int64_t i) { return plan->tokens / threads * i + plan->tokens % threads * i / threads; };
    for (int64_t i = 0; i < threads; ++i) copies.emplace_back(*plan, *kernels, stream, share(i), share(i + 1));
    run_all(copies);
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
