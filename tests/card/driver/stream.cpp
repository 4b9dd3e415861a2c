/* Streams: what is called is queued, and runs as late as it may, in any order that the streams allow. */
#include <algorithm>

#include "count.hpp"
#include "transfer.hpp"

namespace card {
static const size_t WAITING_MAX = 10000;

std::mutex& lock = *new std::mutex;
static std::vector<std::unique_ptr<Stream>>& streams = *new std::vector<std::unique_ptr<Stream>>;
static thread_local Stream* of_this_thread;
static Clock& host = *new Clock;
static uint64_t host_version = 1;
static size_t waiting, staged;
static Operation* running;
static unsigned running_on;

const Clock& seen_by_host() { return host; }

Stream* create_stream(bool blocking) {
    if (streams.empty()) {
        auto legacy = std::make_unique<Stream>();
        legacy->id = 0;
        legacy->blocking = true;
        legacy->after = std::make_shared<Clock>();
        streams.push_back(std::move(legacy));
    }
    auto made = std::make_unique<Stream>();
    made->id = streams.size();
    made->blocking = blocking;
    made->after = std::make_shared<Clock>();
    streams.push_back(std::move(made));
    return streams.back().get();
}

Stream* find_stream(CUstream handle) {
    if (!handle || handle == STREAM_LEGACY) {
        if (streams.empty()) create_stream(true);
        return streams[0].get();
    }
    if (handle == STREAM_PER_THREAD) {
        if (!of_this_thread) of_this_thread = create_stream(true);
        return of_this_thread;
    }
    Stream* stream = reinterpret_cast<Stream*>(handle);
    return known_stream(stream) ? stream : nullptr;
}

bool known_stream(const Stream* stream) {
    auto same = [&](const std::unique_ptr<Stream>& one) { return one.get() == stream && one->alive; };
    return std::any_of(streams.begin(), streams.end(), same);
}

CUstream handle_of(Stream* stream) { return reinterpret_cast<CUstream>(stream); }

Clock clock_of(const Stream* stream) {
    Clock clock = *stream->after;
    clock.raise({stream->id, stream->enqueued});
    return clock;
}

void wait_for(Stream* stream, const Clock& clock) {
    auto joined = std::make_shared<Clock>(*stream->after);
    joined->join(clock);
    stream->after = joined;
}

/* The default stream waits for all streams that do not say otherwise, and they for it. */
static void wait_for_default(Stream* stream) {
    if (!stream->blocking) return;
    for (const auto& other : streams) {
        bool concerned = other.get() != stream && other->blocking && (stream->id == 0 || other->id == 0);
        /* And for what the other waits for, though nothing may follow that there yet. */
        if (concerned && !(stream->after->holds({other->id, other->enqueued}) && stream->after->holds(*other->after))) wait_for(stream, clock_of(other.get()));
    }
}

Operation& enqueue(Stream* stream, const char* name, std::function<const char*()> run) {
    if (stream->host_version != host_version) {
        wait_for(stream, host);
        stream->host_version = host_version;
    }
    wait_for_default(stream);
    stream->queue.emplace_back();
    Operation& operation = stream->queue.back();
    operation.name = name;
    operation.run = std::move(run);
    operation.place = ++stream->enqueued;
    operation.after = stream->after;
    waiting++;
    return operation;
}

bool has_executed(Point point) { return point.place <= streams[point.stream]->executed; }

static bool may_run(const Stream& stream) {
    if (stream.queue.empty()) return false;
    const std::vector<Place>& places = stream.queue.front().after->places;
    for (unsigned other = 0; other < places.size(); other++) {
        if (other != stream.id && places[other] > streams[other]->executed) return false;
    }
    return true;
}

static const char* touch_declared(const Operation& operation) {
    for (const auto* ranges : {&operation.reads, &operation.writes}) {
        for (const Range& range : *ranges) {
            if (!range.of) continue;
            if (range.of->buried) return words("%s uses an allocation after it was freed: %s", operation.name, describe(range.at));
            note_touch(range.of.get(), range.at, range.at + range.bytes, ranges == &operation.writes);
        }
    }
    return nullptr;
}

static void run_first(Stream& stream) {
    Operation operation = std::move(stream.queue.front());
    stream.queue.pop_front();
    waiting--;
    staged -= operation.staged_bytes;
    begin_touching();
    running = &operation;
    running_on = stream.id;
    const char* wrong = nullptr;
    if (broken() == CUDA_SUCCESS) {
        if (settings().dry) wrong = touch_declared(operation);
        if (!wrong && operation.run && (!settings().dry || operation.books)) wrong = operation.run();
        if (wrong) refuse(words("%s on stream %u: %s", operation.name, stream.id, wrong));
        else if ((wrong = end_touching(stream, operation))) refuse(wrong);
    }
    running = nullptr;
    stream.executed = operation.place;
}

void declare_read(const Range& range) {
    if (running) running->reads.push_back(range);
}

void declare_write(const Range& range) {
    if (running) running->writes.push_back(range);
}

const char* describe_waiting_write(uint64_t address, uint64_t bytes) {
    for (const auto& stream : streams) {
        if (!running || stream->id == running_on) continue;
        for (const Operation& other : stream->queue) {
            /* This one and those that follow it come after what runs. */
            if (other.after->holds({running_on, running->place})) break;
            for (const Range& range : other.writes) {
                if (range.at >= address + bytes || address >= range.at + range.bytes) continue;
                return words("; %s on stream %u is to write there and has not run yet, and nothing orders the two: an event or a synchronisation is missing",
                             other.name, stream->id);
            }
        }
    }
    return "";
}

/* One operation of a stream that may run now and of which `wanted` holds the next one; chosen at random. */
static bool run_one(const Clock* wanted) {
    std::vector<Stream*> ready;
    for (const auto& stream : streams) {
        bool asked = !wanted || wanted->of(stream->id) > stream->executed;
        if (asked && may_run(*stream)) ready.push_back(stream.get());
    }
    if (ready.empty()) return false;
    run_first(*ready[ready.size() == 1 ? 0 : random_below(ready.size())]);
    return true;
}

void make_progress(unsigned count) {
    Opened pages;
    while (count-- && run_one(nullptr)) {
    }
    write_counts_sometimes();
}

CUresult synchronize(const Clock& clock) {
    {
        Opened pages;
        while (run_one(&clock)) {
        }
    }
    host.join(clock);
    host_version++;
    end_flights(host);
    write_counts_sometimes();
    return broken();
}

CUresult synchronize_all() {
    Clock all;
    for (const auto& stream : streams) all.raise({stream->id, stream->enqueued});
    return synchronize(all);
}

void note_staged(Operation& operation, size_t bytes) {
    operation.staged_bytes = bytes;
    staged += bytes;
}

void relieve() {
    if (waiting < WAITING_MAX && staged < settings().queue_bytes) return;
    make_progress(waiting / 2 + 1);
}
}  // namespace card
