// The entry: a plan is checked, cut into launches, and launched.
#include "../kvlingua_gpu.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include "../check.h"
#include "large_pieces.h"
#include "launches.h"
#include "runtime.h"

// ctypes declares them by hand.
static_assert(sizeof(kvl_gpu_call) == 48 && sizeof(kvl_gpu_device) == 328);

namespace kvl {
namespace {

#if defined(KVL_MOST_WORDS)  // of tests: so few that most plans take several launches
constexpr uint32_t kMostWords = KVL_MOST_WORDS;
#elif defined(__HIP__)
constexpr uint32_t kMostWords = kSmallWords;
#else
constexpr uint32_t kMostWords = kLargeWords;
#endif

int32_t code(int error) { return error ? KVL_PLATFORM_ERROR + error : KVL_OK; }

constexpr int64_t kBlockBytes = 32 << 10, kBlocks = 512;  // until tuned: layouts/tuning.toml

template <uint32_t kWords>
int run(const Launch& launch, void* stream) {
    Work<kWords> work;
    work.head = launch.head;
    std::memcpy(work.words, launch.words.data(), launch.words.size() * sizeof(uint64_t));
    return run_kernel(&work, launch.blocks, stream);
}

// Copying a large argument for a small launch would take longer than the launch.
int run(const Launch& launch, void* stream) {
    if constexpr (kMostWords > kSmallWords)
        if (launch.words.size() > kSmallWords) return run<kMostWords>(launch, stream);
    return run<std::min(kSmallWords, kMostWords)>(launch, stream);
}

int32_t check_call(const kvl_gpu_call& call) {
    if (call.reserved || call.block_bytes < 0 || call.blocks < 0 || call.device < 0 || call.piece_bytes < 0)
        return KVL_SIZE;
    if (const int32_t wrong = check_plan(call.plan)) return wrong;
    const kvl_plan& plan = *call.plan;
    if (call.verdict % sizeof(uint32_t)) return KVL_STRIDE;
    return !call.verdict && std::any_of(plan.plane, plan.plane + plan.planes, compares) ? KVL_NULL : KVL_OK;
}

int32_t convert(const kvl_gpu_call& call) {
    if (const int32_t wrong = check_call(call)) return wrong;
    if (call.plan->tokens == 0) return KVL_OK;
    if (call.piece_bytes) {
        const std::vector<Piece> pieces = find_large_pieces(*call.plan, call.piece_bytes);
        if (!pieces.empty()) {
            const OnDevice on_device(call.device);
            return code(on_device.error() ? on_device.error() : copy_pieces(pieces, call.stream));
        }
    }
    const Tuning tuning = {call.block_bytes ? call.block_bytes : kBlockBytes, call.blocks ? call.blocks : kBlocks};
    const std::vector<Launch> launches = find_launches(*call.plan, call.verdict, tuning, kMostWords);
    const OnDevice on_device(call.device);
    int error = on_device.error();
    for (size_t i = 0; i < launches.size() && !error; ++i) error = run(launches[i], call.stream);
    return code(error);
}

}  // namespace
}  // namespace kvl

int32_t kvl_gpu_abi_version(void) { return KVL_GPU_ABI_VERSION; }

const char* kvl_gpu_platform(void) { return KVL_PLATFORM; }

const char* kvl_gpu_message(int32_t code) {
    if (code == KVL_UNSUPPORTED) return "it is larger, or lies elsewhere, than a GPU could address it";
    return code > KVL_PLATFORM_ERROR ? kvl::error_text(code - KVL_PLATFORM_ERROR) : kvl_message(code);
}

int32_t kvl_gpu_devices(int32_t* count) {
    if (!count) return KVL_NULL;
    *count = 0;
    return kvl::code(kvl::devices(count));
}

int32_t kvl_gpu_describe(int32_t device, kvl_gpu_device* found) {
    if (!found) return KVL_NULL;
    *found = {};
    return kvl::code(kvl::describe(device, found));
}

int32_t kvl_gpu_pin(void* memory, int64_t bytes) {
    if (!memory) return KVL_NULL;
    if (bytes <= 0) return KVL_SIZE;
    void* mapped = nullptr;
    const int error = kvl::pin(memory, static_cast<size_t>(bytes), &mapped);
    if (error || mapped == memory) return kvl::code(error);
    const int other = kvl::unpin(memory);
    return other ? kvl::code(other) : KVL_UNSUPPORTED;
}

int32_t kvl_gpu_unpin(void* memory) { return memory ? kvl::code(kvl::unpin(memory)) : KVL_NULL; }

int32_t kvl_gpu_copy(int32_t device, void* stream, void* target, const void* source, int64_t bytes) {
    if (!target || !source) return KVL_NULL;
    if (bytes < 0) return KVL_SIZE;
    const kvl::OnDevice on_device(device);
    if (on_device.error()) return kvl::code(on_device.error());
    const auto address = [](const void* memory) { return reinterpret_cast<uint64_t>(memory); };
    return kvl::code(kvl::copy_pieces({{address(source), address(target), static_cast<uint64_t>(bytes)}}, stream));
}

int32_t kvl_gpu_wait(int32_t device, void* stream) {
    const kvl::OnDevice on_device(device);
    return kvl::code(on_device.error() ? on_device.error() : kvl::wait(stream));
}

int32_t kvl_gpu_convert(const kvl_gpu_call* call) {
    if (!call) return KVL_NULL;
    try {
        return kvl::convert(*call);
    } catch (const kvl::TooLarge&) {
        return KVL_UNSUPPORTED;
    } catch (const std::bad_alloc&) {
        return KVL_MEMORY;
    }
}
