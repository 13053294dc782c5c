// Loading a batch of objects: each is read into one slot of memory that stays in the cache, verified there, and
// converted from there into the target.
#include <fcntl.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <vector>

#include "check.h"
#include "convert.h"
#include "file.h"
#include "form.h"
#include "gate.h"
#include "kvlingua.h"
#include "team.h"

namespace kvl {
namespace {

constexpr uint64_t kReadBytes = 256 << 10;  // what is read is verified while it is still in the second-level cache
constexpr int64_t kMostThreads = 1024, kMostObjects = int64_t{1} << 32;

int64_t slot_bytes(const kvl_form& form) { return (form.object_bytes + 63) / 64 * 64; }

// A group's plan with the source in another slot.
class SlotPlan {
  public:
    SlotPlan(const kvl_plan& plan, uint64_t distance) : plan_(plan), planes_(plan.plane, plan.plane + plan.planes) {
        addresses_.reserve(static_cast<size_t>(2 * plan.planes * plan.layers));
        for (kvl_plane& plane : planes_)
            for (kvl_side* side : {&plane.source, &plane.source_scale})
                if (side->base) side->base = moved(side->base, distance);
        plan_.plane = planes_.data();
    }
    SlotPlan(const SlotPlan&) = delete;
    SlotPlan& operator=(const SlotPlan&) = delete;

    const kvl_plan& plan() const { return plan_; }

  private:
    const uint64_t* moved(const uint64_t* base, uint64_t distance) {
        const uint64_t* first = addresses_.data() + addresses_.size();
        for (int64_t layer = 0; layer < plan_.layers; ++layer) addresses_.push_back(base[layer] + distance);
        return first;
    }

    kvl_plan plan_;
    std::vector<kvl_plane> planes_;
    std::vector<uint64_t> addresses_;
};

class Loading {
  public:
    Loading(const kvl_load& load, Xxh3Blocks blocks, int64_t slot) : load_(load), slot_(slot) {
        for (const kvl_group* group = load.group; group < load.group + load.groups; ++group) {
            forms_.emplace_back(*group->form, blocks);
            streams_.push_back(streams(*group->plan));
            for (kvl_stored* object = group->object; object < group->object + group->objects; ++object) {
                *object = {object->name, object->chain, object->block, KVL_UNTRIED, 0};
                items_.push_back({static_cast<size_t>(group - load.group), object});
            }
        }
        const int64_t most = std::min<int64_t>(load.threads, load.scratch_bytes / slot);
        threads_ = std::max<int64_t>(1, std::min(most, static_cast<int64_t>(items_.size())));
        for (int64_t thread = 0; thread < threads_; ++thread)
            for (const kvl_group* group = load.group; group < load.group + load.groups; ++group)
                plans_.push_back(std::make_unique<SlotPlan>(*group->plan, static_cast<uint64_t>(thread * slot)));
    }

    void run() {
        run_team(threads_, [this](int64_t thread) {
            for (size_t i; (i = next_.fetch_add(1)) < items_.size();) work(items_[i], thread);
        });
    }

  private:
    struct Item {
        size_t group;
        kvl_stored* object;
    };

    void work(const Item& item, int64_t thread) {
        if (closed(load_.gate)) return;
        char* slot = load_.scratch + thread * slot_;
        kvl_stored& object = *item.object;
        object.status = fetch(item, slot, &object.error);
        if (object.status == KVL_DONE && !failed_) {
            const SlotPlan& plan = *plans_[static_cast<size_t>(thread * load_.groups) + item.group];
            object.status = convert(plan.plan(), object.block, streams_[item.group], &object.error);
        }
        if (object.status != KVL_DONE) failed_ = true;
    }

    // Reads an object and verifies it, part by part as the parts come in.
    int32_t fetch(const Item& item, char* slot, int32_t* error) {
        const Form& form = forms_[item.group];
        const kvl_form& numbers = form.form();
        File file(load_.group[item.group].folder, item.object->name, O_RDONLY, numbers.object_bytes);
        auto span = form.spans().begin();
        uint64_t at = 0;
        const auto read_to = [&](uint64_t end) {
            while (span != form.spans().end() && at < end && span->begin < end) {
                at = std::max(at, span->begin);
                const uint64_t to = std::min(span->end, at + kReadBytes);
                if (!file.read(slot + at, at, to)) return false;
                at = to;
                if (at == span->end) ++span;
            }
            return true;
        };
        *error = file.error();
        if (file.status() != KVL_DONE) return file.status();
        const auto unread = [&] {
            *error = file.error();
            return file.status();
        };
        if (!read_to(static_cast<uint64_t>(numbers.header_bytes))) return unread();
        const int32_t wrong = form.check_header(slot, item.object->chain);
        if (wrong) return wrong;
        for (const Form::Part& part : form.parts()) {
            if (!read_to(part.end)) return unread();
            if (!form.intact(slot, *part.part)) return KVL_DAMAGED;
        }
        return KVL_DONE;
    }

    int32_t convert(const kvl_plan& plan, int64_t block, bool stream, int32_t* error) {
        const int64_t page = plan.source.page, first = block * page - plan.source.start;
        const Passage passage(load_.gate);
        if (!passage.open()) return KVL_UNTRIED;
        *error = convert_tokens(plan, std::max<int64_t>(first, 0), std::min(first + page, plan.tokens), stream);
        return *error ? KVL_UNCONVERTED : KVL_DONE;
    }

    const kvl_load& load_;
    int64_t slot_, threads_;
    std::vector<Form> forms_;
    std::vector<bool> streams_;
    std::vector<std::unique_ptr<SlotPlan>> plans_;  // of each thread for each group
    std::vector<Item> items_;
    std::atomic<size_t> next_{0};
    std::atomic<bool> failed_{false};
};

int32_t check_group(const kvl_group& group, const char* scratch) {
    if (!group.form || !group.plan || (group.objects && !group.object)) return KVL_NULL;
    if (group.objects < 0 || group.objects > kMostObjects) return KVL_SIZE;
    int32_t wrong = Form::check(*group.form);
    if (!wrong) wrong = check_plan(group.plan);
    if (wrong) return wrong;
    const kvl_view& source = group.plan->source;
    if (source.blocks != 1 || source.page != group.form->chunk_tokens) return KVL_SIZE;
    const uint64_t begin = reinterpret_cast<uint64_t>(scratch);
    const uint64_t end = begin + static_cast<uint64_t>(group.form->object_bytes);
    for (int64_t i = 0; i < source.spans; ++i)
        if (source.span[i].begin < begin || source.span[i].end > end) return KVL_SPAN;
    const int64_t first = source.start / source.page, last = (source.start + group.plan->tokens - 1) / source.page;
    for (const kvl_stored* object = group.object; object < group.object + group.objects; ++object) {
        if (!object->name || !object->chain) return KVL_NULL;
        if (object->block < first || object->block > last) return KVL_TABLE;
    }
    return KVL_OK;
}

int32_t load_objects(const kvl_load* load) {
    if (!load || !load->scratch || !load->gate || (load->groups && !load->group)) return KVL_NULL;
    if (load->threads < 1 || load->threads > kMostThreads || load->groups < 0) return KVL_SIZE;
    const Xxh3Blocks blocks = find_xxh3(load->kernels);
    if (!blocks) return KVL_UNSUPPORTED;
    int64_t slot = 64;
    for (const kvl_group* group = load->group; group < load->group + load->groups; ++group) {
        const int32_t wrong = check_group(*group, load->scratch);
        if (wrong) return wrong;
        slot = std::max(slot, slot_bytes(*group->form));
    }
    if (load->scratch_bytes < slot || reinterpret_cast<uint64_t>(load->scratch) % 64) return KVL_SIZE;
    Loading(*load, blocks, slot).run();
    return KVL_OK;
}

}  // namespace
}  // namespace kvl

int32_t kvl_load_objects(const kvl_load* load) {
    try {
        return kvl::load_objects(load);
    } catch (const std::bad_alloc&) {
        return KVL_MEMORY;
    }
}

void kvl_close_gate(kvl_gate* gate) {
    __atomic_store_n(&gate->closed, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&gate->writing, __ATOMIC_SEQ_CST)) sched_yield();
}
