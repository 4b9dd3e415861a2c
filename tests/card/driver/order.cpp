/* The calls on streams and events: create, order, wait. */
#include <chrono>
#include <unordered_map>

#include "context.hpp"
#include "count.hpp"
#include "pool.hpp"
#include "transfer.hpp"

using namespace card;

namespace {
std::unordered_map<CUevent, std::unique_ptr<Event>>& events = *new std::unordered_map<CUevent, std::unique_ptr<Event>>;

Event* find_event(CUevent handle) {
    auto found = events.find(handle);
    return found == events.end() ? nullptr : found->second.get();
}

CUresult no_stream(const char* call) { return refuse(words("%s: the stream does not exist", call), CUDA_ERROR_INVALID_HANDLE); }
CUresult no_event(const char* call) { return refuse(words("%s: the event does not exist", call), CUDA_ERROR_INVALID_HANDLE); }

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/* Who asks whether something is done again and again must see it done one day. */
const unsigned STEPS_OF_A_QUERY = 16;

CUresult query(const Clock& clock) {
    make_progress(random_below(STEPS_OF_A_QUERY) + 1);
    if (CUresult error = broken()) return error;
    for (unsigned stream = 0; stream < clock.places.size(); stream++) {
        if (clock.places[stream] && !has_executed({stream, clock.places[stream]})) return CUDA_ERROR_NOT_READY;
    }
    return synchronize(clock);
}
}  // namespace

CARD_API CUresult cuStreamCreate(CUstream* handle, unsigned flags) {
    ENTER("cuStreamCreate");
    *handle = handle_of(create_stream(!(flags & STREAM_NON_BLOCKING)));
    return CUDA_SUCCESS;
}

CARD_API CUresult cuStreamCreateWithPriority(CUstream* handle, unsigned flags, int) { return cuStreamCreate(handle, flags); }

/* What was queued still runs. */
CARD_API CUresult cuStreamDestroy_v2(CUstream handle) {
    Locked locked(lock);
    if (CUresult early = enter_without_context()) return early;
    Stream* stream = find_stream(handle);
    if (!stream || !handle || handle == STREAM_LEGACY || handle == STREAM_PER_THREAD) return no_stream("cuStreamDestroy");
    stream->alive = false;
    return CUDA_SUCCESS;
}

CARD_API CUresult cuStreamSynchronize(CUstream handle) {
    ENTER("cuStreamSynchronize");
    Stream* stream = find_stream(handle);
    if (!stream) return no_stream("cuStreamSynchronize");
    counts.synchronizations["stream"]++;
    trace("synchronize", "stream", 0, stream->id);
    /* The default stream's end is that of all streams that wait for it. */
    if (stream->id == 0) enqueue(stream, "cuStreamSynchronize", nullptr);
    CUresult result = synchronize(clock_of(stream));
    release_pools();
    return result;
}

CARD_API CUresult cuStreamQuery(CUstream handle) {
    ENTER("cuStreamQuery");
    Stream* stream = find_stream(handle);
    return stream ? query(clock_of(stream)) : no_stream("cuStreamQuery");
}

CARD_API CUresult cuStreamIsCapturing(CUstream handle, int* status) {
    ENTER("cuStreamIsCapturing");
    if (!find_stream(handle)) return no_stream("cuStreamIsCapturing");
    *status = 0;
    return CUDA_SUCCESS;
}

CARD_API CUresult cuStreamGetCtx(CUstream handle, CUcontext* context) {
    ENTER("cuStreamGetCtx");
    if (!find_stream(handle)) return no_stream("cuStreamGetCtx");
    *context = current_context();
    return CUDA_SUCCESS;
}

CARD_API CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned) {
    ENTER("cuStreamWaitEvent");
    Stream* stream = find_stream(handle);
    Event* event = find_event(event_handle);
    if (!stream) return no_stream("cuStreamWaitEvent");
    if (!event) return no_event("cuStreamWaitEvent");
    if (event->recorded) wait_for(stream, event->clock);
    return CUDA_SUCCESS;
}

CARD_API CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void* data) {
    ENTER("cuLaunchHostFunc");
    Stream* stream = find_stream(handle);
    if (!stream) return no_stream("cuLaunchHostFunc");
    Clock before = clock_of(stream);
    Operation& operation = enqueue(stream, "cuLaunchHostFunc", [=]() -> const char* {
        /* It may use what the operations before it were about, and tell others that they may. */
        end_flights(before);
        function(data);
        return nullptr;
    });
    operation.books = true;
    relieve();
    return CUDA_SUCCESS;
}

CARD_API CUresult cuEventCreate(CUevent* handle, unsigned flags) {
    ENTER("cuEventCreate");
    auto event = std::make_unique<Event>();
    event->timed = !(flags & EVENT_DISABLE_TIMING);
    *handle = reinterpret_cast<CUevent>(event.get());
    events[*handle] = std::move(event);
    counts.events++;
    return CUDA_SUCCESS;
}

CARD_API CUresult cuEventDestroy_v2(CUevent handle) {
    Locked locked(lock);
    if (CUresult early = enter_without_context()) return early;
    return events.erase(handle) ? CUDA_SUCCESS : no_event("cuEventDestroy");
}

CARD_API CUresult cuEventRecord(CUevent handle, CUstream stream_handle) {
    ENTER("cuEventRecord");
    Stream* stream = find_stream(stream_handle);
    Event* event = find_event(handle);
    if (!stream) return no_stream("cuEventRecord");
    if (!event) return no_event("cuEventRecord");
    auto seconds = event->seconds = std::make_shared<double>(-1);
    Operation& operation = enqueue(stream, "cuEventRecord", [seconds]() -> const char* {
        *seconds = now();
        return nullptr;
    });
    operation.books = true;
    event->recorded = true;
    event->clock = clock_of(stream);
    relieve();
    return CUDA_SUCCESS;
}

CARD_API CUresult cuEventQuery(CUevent handle) {
    ENTER("cuEventQuery");
    Event* event = find_event(handle);
    if (!event) return no_event("cuEventQuery");
    return event->recorded ? query(event->clock) : CUDA_SUCCESS;
}

CARD_API CUresult cuEventSynchronize(CUevent handle) {
    ENTER("cuEventSynchronize");
    Event* event = find_event(handle);
    if (!event) return no_event("cuEventSynchronize");
    if (!event->recorded) return CUDA_SUCCESS;
    counts.synchronizations["event"]++;
    trace("synchronize", "event", 0, 0);
    CUresult result = synchronize(event->clock);
    release_pools();
    return result;
}

CARD_API CUresult cuEventElapsedTime(float* milliseconds, CUevent start_handle, CUevent end_handle) {
    ENTER("cuEventElapsedTime");
    Event *start = find_event(start_handle), *end = find_event(end_handle);
    if (!start || !end) return no_event("cuEventElapsedTime");
    if (!start->timed || !end->timed || !start->recorded || !end->recorded) return CUDA_ERROR_INVALID_HANDLE;
    if (*start->seconds < 0 || *end->seconds < 0) return CUDA_ERROR_NOT_READY;
    *milliseconds = static_cast<float>((*end->seconds - *start->seconds) * 1e3);
    return CUDA_SUCCESS;
}

CARD_API CUresult cuEventElapsedTime_v2(float* milliseconds, CUevent start, CUevent end) {
    return cuEventElapsedTime(milliseconds, start, end);
}
