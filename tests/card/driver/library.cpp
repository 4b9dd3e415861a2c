/* Queues what cuBLAS and cuRAND do on the card. */
#include "../library.hpp"

#include "context.hpp"
#include "count.hpp"
#include "engine.hpp"
#include "fail.hpp"

using namespace card;

namespace {
uint64_t address(const CardUse& use) { return reinterpret_cast<uint64_t>(use.at); }
size_t span(const CardUse& use) { return use.rows ? (use.rows - 1) * use.stride + use.bytes : 0; }

const char* touch_all(const std::vector<CardUse>& uses) {
    for (const CardUse& use : uses) {
        bool one = use.rows == 1 || use.stride == use.bytes;
        const char* at = static_cast<const char*>(use.at);
        if (one && use.writes) mark_whole(address(use), span(use));
        size_t rows = one ? 1 : use.rows, bytes = one ? span(use) : use.bytes;
        for (size_t row = 0; row < rows; row++) {
            if (const char* wrong = card_touch(at + row * use.stride, bytes, use.writes)) return wrong;
        }
    }
    return nullptr;
}

struct Data {
    void* data;
    void (*drop)(void*);
    ~Data() { drop(data); }
};
}  // namespace

extern "C" __attribute__((visibility("default"))) int card_enqueue(void* handle, const CardWork* work) {
    auto data = std::shared_ptr<Data>(new Data{work->data, work->drop});
    Locked locked(lock);
    if (CUresult early = enter_without_context()) return early;
    Stream* stream = find_stream(static_cast<CUstream>(handle));
    if (!stream) return refuse(words("%s: the stream does not exist", work->name), CUDA_ERROR_INVALID_HANDLE);
    if (device_is_lost()) {
        break_context(CUDA_ERROR_LAUNCH_FAILED);
        return CUDA_ERROR_LAUNCH_FAILED;
    }
    std::vector<CardUse> uses;
    uint64_t bytes = 0;
    for (size_t i = 0; i < work->use_count; i++) {
        const CardUse& use = work->uses[i];
        if (use.bytes == 0 || use.rows == 0) continue;
        if (const char* why = outside(address(use), span(use))) {
            return refuse(words("%s %s %zu bytes at %p: %s", work->name, use.writes ? "writes" : "reads", span(use), use.at, why),
                          CUDA_ERROR_INVALID_VALUE);
        }
        uses.push_back(use);
        bytes += use.bytes * use.rows;
    }
    if (work->flop) {
        counts.gemms++;
        counts.gemm_flop += work->flop;
        counts.gemm_bytes += bytes;
        counts.misaligned_gemms += work->misaligned;
    }
    void (*run)(void*) = work->run;
    Operation& operation = enqueue(stream, work->name, [data, uses, run]() -> const char* {
        if (const char* wrong = touch_all(uses)) return wrong;
        run(data->data);
        return nullptr;
    });
    for (const CardUse& use : uses) {
        (use.writes ? operation.writes : operation.reads).push_back(whole_range(address(use), span(use)));
        if (use.writes && settings().dry) note_origin(address(use), {work->name, -1, work->type, nullptr, nullptr, {}});
    }
    if (tracing()) {
        trace(work->flop ? "gemm" : "random", work->name, bytes, stream->id,
              words(", \"flop\": %llu, \"misaligned\": %s", (unsigned long long)work->flop, work->misaligned ? "true" : "false") + list_writes(operation));
    }
    relieve();
    return CUDA_SUCCESS;
}

extern "C" __attribute__((visibility("default"))) void card_refuse(const char* what) {
    Locked locked(lock);
    refuse(what, CUDA_ERROR_INVALID_VALUE);
}
