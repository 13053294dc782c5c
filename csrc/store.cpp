// Storing a batch of objects: checksums, headers, and the bytes into their files.
#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <new>

#include "file.h"
#include "form.h"
#include "kvlingua.h"
#include "team.h"

namespace kvl {
namespace {

constexpr int64_t kMostThreads = 1024, kMostObjects = int64_t{1} << 32;
constexpr int64_t kPositionEnd = 10'000'000'000;  // of ten decimal digits

void write(const Form& form, kvl_new* object) {
    form.seal(object->memory, object->chain, object->first_token);
    const int64_t bytes = form.form().object_bytes;
    File file(object->folder, object->name, O_WRONLY, bytes);
    if (file.status() == KVL_DONE && file.write(object->memory, static_cast<uint64_t>(bytes)) &&
        file.date(object->time_ns))
        file.close();
    object->status = file.status();
    object->error = file.error();
}

int32_t store_objects(const kvl_store* store) {
    if (!store || !store->form || (store->objects && !store->object)) return KVL_NULL;
    if (store->threads < 1 || store->threads > kMostThreads || store->objects < 0 || store->objects > kMostObjects)
        return KVL_SIZE;
    const Xxh3Blocks blocks = find_xxh3(store->kernels);
    if (!blocks) return KVL_UNSUPPORTED;
    const int32_t wrong = Form::check(*store->form);
    if (wrong) return wrong;
    for (kvl_new* object = store->object; object < store->object + store->objects; ++object) {
        if (!object->name || !object->chain || !object->memory) return KVL_NULL;
        if (object->first_token < 0 || object->first_token >= kPositionEnd || object->time_ns < 0) return KVL_SIZE;
        object->status = KVL_UNTRIED;
        object->error = 0;
    }
    const Form form(*store->form, blocks);
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    run_team(std::max<int64_t>(1, std::min<int64_t>(store->threads, store->objects)), [&](int64_t) {
        for (int64_t i; !failed && (i = next.fetch_add(1)) < store->objects;) {
            write(form, store->object + i);
            if (store->object[i].status != KVL_DONE) failed = true;
        }
    });
    return KVL_OK;
}

int32_t checksum(int32_t kernels, const char* data, const kvl_span* run, int64_t runs, char* digits) {
    if (!digits || runs < 0 || (runs && (!data || !run))) return KVL_NULL;
    const Xxh3Blocks blocks = find_xxh3(kernels);
    if (!blocks) return KVL_UNSUPPORTED;
    Xxh3 sum(blocks);
    for (int64_t i = 0; i < runs; ++i) {
        if (run[i].end < run[i].begin) return KVL_SIZE;
        sum.update(data + run[i].begin, run[i].end - run[i].begin);
    }
    char text[Xxh3::kDigits];
    sum.digits(text);
    std::copy(text, text + Xxh3::kDigits, digits);
    return KVL_OK;
}

}  // namespace
}  // namespace kvl

int32_t kvl_store_objects(const kvl_store* store) {
    try {
        return kvl::store_objects(store);
    } catch (const std::bad_alloc&) {
        return KVL_MEMORY;
    }
}

int32_t kvl_checksum(int32_t kernels, const char* data, const kvl_span* run, int64_t runs, char* digits) {
    return kvl::checksum(kernels, data, run, runs, digits);
}
