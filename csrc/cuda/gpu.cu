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

int32_t code(int error) {
    if (!error) return KVL_OK;
    forget_error();
    return KVL_PLATFORM_ERROR + error;
}

// No exception leaves the library.
template <class F>
int32_t guarded(const F& run) {
    try {
        return run();
    } catch (const TooLarge&) {
        return KVL_UNSUPPORTED;
    } catch (const std::bad_alloc&) {
        return KVL_MEMORY;
    }
}

constexpr int64_t kBlockBytes = 32 << 10, kBlocks = 512;  // until tuned: layouts/tuning.toml

template <uint32_t kWords>
int run(const Launch& launch, int device, void* stream) {
    Work<kWords> work;
    work.head = launch.head;
    std::memcpy(work.words, launch.words.data(), launch.words.size() * sizeof(uint64_t));
    return run_kernel(&work, launch.blocks, device, stream);
}

// Copying a large argument for a small launch would take longer than the launch.
int run(const Launch& launch, int device, void* stream) {
    if constexpr (kMostWords > kSmallWords)
        if (launch.words.size() > kSmallWords) return run<kMostWords>(launch, device, stream);
    return run<std::min(kSmallWords, kMostWords)>(launch, device, stream);
}

template <class F>
int32_t on(int32_t device, const F& run) {
    if (device < 0) return KVL_SIZE;
    return guarded([&] {
        const OnDevice on_device(device);
        return on_device.error() ? code(on_device.error()) : run();
    });
}

bool any_compares(const kvl_plan& plan) { return std::any_of(plan.plane, plan.plane + plan.planes, compares); }

int32_t check_call(const kvl_gpu_call& call) {
    if (call.reserved || call.block_bytes < 0 || call.blocks < 0 || call.device < 0 || call.piece_bytes < 0)
        return KVL_SIZE;
    if (const int32_t wrong = check_plan(call.plan)) return wrong;
    return call.verdict % sizeof(uint32_t) ? KVL_STRIDE : KVL_OK;
}

// A call that was checked.
int32_t convert(const kvl_gpu_call& call) {
    if (any_compares(*call.plan)) {
        bool captured = false;
        if (const int error = captures(call.stream, &captured)) return code(error);
        if (captured) return KVL_GPU_CAPTURED;
        if (!call.verdict) return KVL_NULL;
    }
    if (call.piece_bytes) {
        const std::vector<Piece> pieces = find_large_pieces(*call.plan, call.piece_bytes);
        if (!pieces.empty()) return code(copy_pieces(pieces, call.stream));
    }
    const Tuning tuning = {call.block_bytes ? call.block_bytes : kBlockBytes, call.blocks ? call.blocks : kBlocks};
    const std::vector<Launch> launches = find_launches(*call.plan, call.verdict, tuning, kMostWords);
    int error = 0;
    for (size_t i = 0; i < launches.size() && !error; ++i) error = run(launches[i], call.device, call.stream);
    return code(error);
}

}  // namespace
}  // namespace kvl

int32_t kvl_gpu_abi_version(void) { return KVL_GPU_ABI_VERSION; }

const char* kvl_gpu_platform(void) { return KVL_PLATFORM; }

const char* kvl_gpu_message(int32_t code) {
    if (code == KVL_GPU_CAPTURED)
        return "scales must be compared before anything is written, which a stream that is being captured can't wait "
               "for";
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

int32_t kvl_gpu_ready(int32_t device) {
    return kvl::on(device, [] {
        const kvl::Relaxed relaxed;
        if (relaxed.error()) return kvl::code(relaxed.error());
        const int error = kvl::load_kernel<std::min(kvl::kSmallWords, kvl::kMostWords)>();
        return kvl::code(error ? error : kvl::load_kernel<kvl::kMostWords>());
    });
}

int32_t kvl_gpu_pin(int32_t device, void* memory, int64_t bytes) {
    if (!memory) return KVL_NULL;
    if (bytes <= 0) return KVL_SIZE;
    return kvl::on(device, [&] { return kvl::code(kvl::pin(memory, static_cast<size_t>(bytes))); });
}

int32_t kvl_gpu_mapped(int32_t device, void* memory, uint64_t* address) {
    if (!memory || !address) return KVL_NULL;
    *address = 0;
    return kvl::on(device, [&] {
        void* found = nullptr;
        const int error = kvl::mapped(memory, &found);
        if (!error) *address = reinterpret_cast<uint64_t>(found);
        return kvl::code(error);
    });
}

int32_t kvl_gpu_load([[maybe_unused]] int32_t device, const void* code_object) {
    if (!code_object) return KVL_NULL;
#if defined(__HIP__)
    return kvl::on(device, [&] {
        const kvl::Relaxed relaxed;
        return kvl::code(relaxed.error() ? relaxed.error() : kvl::load_code(device, code_object));
    });
#else
    return KVL_UNSUPPORTED;
#endif
}

int32_t kvl_gpu_begin_lane(int32_t device, void** stream, void** events, int32_t count) {
    if (!stream || !events) return KVL_NULL;
    if (count < 0) return KVL_SIZE;
    *stream = nullptr;
    return kvl::on(device, [&] {
        const kvl::Relaxed relaxed;
        int error = relaxed.error() ? relaxed.error() : kvl::begin_stream(stream), made = 0;
        const bool has_stream = !error;
        for (; made < count && !error; ++made) error = kvl::begin_event(&events[made]);
        if (error) {
            for (int32_t i = 0; i < made - has_stream; ++i) static_cast<void>(kvl::end_event(events[i]));
            if (has_stream) static_cast<void>(kvl::end_stream(*stream));
        }
        return kvl::code(error);
    });
}

int32_t kvl_gpu_end_lane(int32_t device, void* stream, void** events, int32_t count) {
    if (!events) return KVL_NULL;
    return kvl::on(device, [&] {
        const kvl::Relaxed relaxed;
        int error = relaxed.error();
        for (int32_t i = 0; i < count; ++i)
            if (const int wrong = kvl::end_event(events[i])) error = wrong;
        const int wrong = kvl::end_stream(stream);
        return kvl::code(wrong ? wrong : error);
    });
}

int32_t kvl_gpu_record(int32_t device, void* event, void* stream) {
    return kvl::on(device, [&] { return kvl::code(kvl::record(event, stream)); });
}

int32_t kvl_gpu_follow(int32_t device, void* stream, void* event) {
    return kvl::on(device, [&] { return kvl::code(kvl::follow(stream, event)); });
}

int32_t kvl_gpu_captured(int32_t device, void* stream, int32_t* found) {
    if (!found) return KVL_NULL;
    *found = 0;
    return kvl::on(device, [&] {
        bool captured = false;
        const int error = kvl::captures(stream, &captured);
        *found = captured;
        return kvl::code(error);
    });
}

int32_t kvl_gpu_unpin(int32_t device, void* memory) {
    if (!memory) return KVL_NULL;
    return kvl::on(device, [&] { return kvl::code(kvl::unpin(memory)); });
}

int32_t kvl_gpu_copy(int32_t device, void* stream, void* target, const void* source, int64_t bytes) {
    if (!target || !source) return KVL_NULL;
    if (bytes < 0) return KVL_SIZE;
    const auto address = [](const void* memory) { return reinterpret_cast<uint64_t>(memory); };
    return kvl::on(device, [&] {
        return kvl::code(kvl::copy_pieces({{address(source), address(target), static_cast<uint64_t>(bytes)}}, stream));
    });
}

int32_t kvl_gpu_wait(int32_t device, void* stream) {
    return kvl::on(device, [&] { return kvl::code(kvl::wait(stream)); });
}

int32_t kvl_gpu_pieces(const kvl_gpu_call* call, int64_t* count) {
    if (!call || !count) return KVL_NULL;
    *count = 0;
    return kvl::guarded([&]() -> int32_t {
        if (const int32_t wrong = kvl::check_call(*call)) return wrong;
        if (call->piece_bytes && call->plan->tokens)
            *count = static_cast<int64_t>(kvl::find_large_pieces(*call->plan, call->piece_bytes).size());
        return KVL_OK;
    });
}

int32_t kvl_gpu_convert(const kvl_gpu_call* call) {
    if (!call) return KVL_NULL;
    return kvl::guarded([&] {
        const int32_t wrong = kvl::check_call(*call);
        return wrong || !call->plan->tokens ? wrong : kvl::on(call->device, [&] { return kvl::convert(*call); });
    });
}

#if !defined(KVL_GRID)
// Of the host twin: how busy the calling thread's launches have kept their lanes since it last asked.
KVL_API void kvl_twin_lanes(uint64_t* counts) {
    counts[0] = kvl::lanes.made;
    counts[1] = kvl::lanes.room[0];
    counts[2] = kvl::lanes.room[1];
    kvl::lanes = {};
}
#endif
