/* What the driver holds of one process: allocations, streams with their queues, and what all files share. */
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "clock.hpp"
#include "../module.hpp"
#include "cuda_types.hpp"

namespace card {
struct Block;
struct Pool;
struct Marks;

/* What wrote an allocation last, for dry runs. */
struct Origin {
    /* A kernel, with which of its parameters; or a library's function or a copy, with the type where that is known. */
    const char* writer = nullptr;
    int parameter = -1;
    const char* type = nullptr;
    const CardEntry* entry = nullptr;
    std::shared_ptr<unsigned char> arguments;
    /* Small copies from the host, as they were, by their offset. */
    std::map<uint64_t, std::vector<unsigned char>> bytes;
};

struct Allocation {
    uint64_t begin, size;
    uint64_t number;  // among the process's allocations, from 1
    uint64_t slot_bytes;
    unsigned stream;
    Pool* pool;
    Block* block;
    /* Every byte was written, so no byte of the shadow needs to say so. */
    bool whole = false;
    bool buried = false;
    std::vector<Access> accesses;
    /* What the operation that is running touched. */
    uint64_t touched_by = 0;
    uint64_t read_begin, read_end, written_begin, written_end;
    /* Which of the operations looks for races in it, and with what. */
    uint64_t marked_by = 0;
    Marks* marks = nullptr;
    Origin origin;

    uint64_t end() const { return begin + size; }
};

struct Range {
    uint64_t at, bytes;
    std::shared_ptr<Allocation> of;
};

/* Something that a stream does later. */
struct Operation {
    const char* name;
    /* nullptr, or what was wrong. */
    std::function<const char*()> run;
    Place place = 0;
    SharedClock after;
    size_t staged_bytes = 0;
    /* What it may write; in a dry run, what it is taken to touch. */
    std::vector<Range> reads, writes;
    /* Runs in a dry run too: it keeps the books. */
    bool books = false;
    /* What it may read is all said in `reads` and `writes`. */
    bool declares_reads = false;
};

struct Stream {
    unsigned id;
    /* Waits for the default stream and is waited for by it. */
    bool blocking;
    bool alive = true;
    std::deque<Operation> queue;
    Place enqueued = 0, executed = 0;
    SharedClock after;
    uint64_t host_version = 0;
};

struct Event {
    bool timed;
    bool recorded = false;
    Clock clock;
    Point point{0, 0};
    std::shared_ptr<double> seconds;
};

/* Held during every call of the driver. */
extern std::mutex& lock;
typedef std::lock_guard<std::mutex> Locked;

// settings.cpp
struct Settings {
    std::string dir;
    uint64_t cap_bytes, context_bytes, queue_bytes, quarantine_bytes;
    uint64_t seed;
    bool dry, shadow, races, error_instead;
    std::string trace, fail_file;
};
const Settings& settings();
/* The next of a fixed sequence of random numbers below `bound`. */
uint64_t random_below(uint64_t bound);

// refuse.cpp
/* printf into a buffer that lives until 16 more were made. */
const char* words(const char* format, ...) __attribute__((format(printf, 1, 2)));
/* Says what a card would not have taken and ends the process; with CARD_REFUSE=error, sets and returns the error. */
/* Its name, while the calling thread runs one. */
const char* running_kernel();
CUresult refuse(const char* what, CUresult error = CUDA_ERROR_ILLEGAL_ADDRESS);
/* The error that every call gives since one broke the context, or success. */
CUresult broken();
void break_context(CUresult error);
void watch_host_accesses();
/* Copies, or says that the source cannot be read. */
bool copy_readable(void* to, const void* from, size_t bytes);

// memory.cpp
void reserve_addresses();
/* Makes the card's pages accessible while it lives. */
struct Opened {
    Opened();
    ~Opened();
};
Allocation* place_allocation(uint64_t bytes, unsigned stream);
/* Takes an allocation out of what kernels can reach. */
void bury(Allocation* allocation, const char* by);
/* By the order of calls: what is allocated and not yet freed. */
Allocation* live_at(uint64_t address);
Range whole_range(uint64_t address, uint64_t bytes);
extern std::map<uint64_t, std::shared_ptr<Allocation>>& live;
/* Freed by a call that no stream has come to yet. */
extern std::map<uint64_t, Allocation*>& leaving;
/* The allocation that operations see at an address. */
Allocation* seen_at(uint64_t address);
/* What lies at an address, in words. */
const char* describe(uint64_t address);
/* nullptr, or why the bytes are not within a live allocation. */
const char* outside(uint64_t address, uint64_t bytes);
/* A write of all bytes of an allocation needs no shadow. */
void mark_whole(uint64_t address, uint64_t bytes);

// touch.cpp
void begin_touching();
extern uint64_t touching;
extern std::vector<Allocation*>& touched;
inline void note_touch(Allocation* allocation, uint64_t begin, uint64_t end, bool writes) {
    if (__builtin_expect(allocation->touched_by != touching, 0)) {
        allocation->touched_by = touching;
        allocation->read_begin = allocation->written_begin = ~0ull;
        allocation->read_end = allocation->written_end = 0;
        touched.push_back(allocation);
    }
    uint64_t& from = writes ? allocation->written_begin : allocation->read_begin;
    uint64_t& to = writes ? allocation->written_end : allocation->read_end;
    if (begin < from) from = begin;
    if (end > to) to = end;
}
/* Checks what the running operation touched against all earlier operations; nullptr or what was wrong. */
const char* end_touching(const Stream& stream, const Operation& operation);

// stream.cpp, order.cpp
Stream* find_stream(CUstream handle);
Stream* create_stream(bool blocking);
CUstream handle_of(Stream* stream);
bool known_stream(const Stream* stream);
Operation& enqueue(Stream* stream, const char* name, std::function<const char*()> run);
/* Bytes that the operation holds of the host's. */
void note_staged(Operation& operation, size_t bytes);
/* After enqueueing: runs what has waited when too much waits. */
void relieve();
Clock clock_of(const Stream* stream);
void wait_for(Stream* stream, const Clock& clock);
/* What the operation that is running may touch beside what it said when it was called. */
void declare_read(const Range& range);
void declare_write(const Range& range);
/* Runs what the clock holds; the host has then seen it. */
CUresult synchronize(const Clock& clock);
CUresult synchronize_all();
/* Runs up to `count` operations that may run now. */
void make_progress(unsigned count);
bool has_executed(Point point);
/* For an operation that reads bytes which nothing wrote: the operation of another stream that is to write them and that may run before or after
 * this one, in words that go on with the sentence; "" where there is none. */
const char* describe_waiting_write(uint64_t address, uint64_t bytes);
const Clock& seen_by_host();

// dry.cpp
void invent(Allocation* allocation, uint64_t offset, void* to, uint64_t bytes);
void note_origin(uint64_t address, const Origin& origin);
/* Whether a kernel writes what this parameter points to. */
bool kernel_writes(const CardEntry& entry, int parameter);
inline bool is_table(const CardParameter& parameter) { return parameter.kind == CARD_TABLE || parameter.kind == CARD_FLOATS_TABLE; }
/* As the kernel's text has them. */
const std::vector<std::string>& parameter_names(const CardEntry& entry);
void remember_copy(uint64_t address, const void* from, uint64_t bytes);
}  // namespace card
