/* Launches: what a card would not take is refused at the call, the rest runs when its stream comes to it. */
#include <algorithm>
#include <cstring>

#include "context.hpp"
#include "count.hpp"
#include "engine.hpp"
#include "fail.hpp"
#include "module.hpp"
#include "races.hpp"

namespace card {
/* Of sm_89. */
static const unsigned THREADS_MAX = 1024, BLOCK_Z_MAX = 64, SHARED_MAX = 99 << 10;
static const unsigned GRID_MAX[3] = {0x7fffffff, 65535, 65535};
/* No kernel of a card has more bytes of parameters. */
static const size_t PARAMETER_BYTES_MAX = 32764;

static const char* check_shape(const Function& function, const unsigned grid[3], const unsigned block[3], unsigned shared) {
    for (int i = 0; i < 3; i++) {
        if (grid[i] == 0 || grid[i] > GRID_MAX[i]) {
            return words("a grid of %u x %u x %u blocks; each is at least 1 and at most 2147483647 x 65535 x 65535", grid[0], grid[1], grid[2]);
        }
    }
    uint64_t threads = uint64_t{block[0]} * block[1] * block[2];
    if (threads == 0 || threads > THREADS_MAX || block[2] > BLOCK_Z_MAX) {
        return words("blocks of %u x %u x %u threads; a block has 1 to %u, 64 of them along z", block[0], block[1], block[2], THREADS_MAX);
    }
    if (threads > function.entry->max_threads) {
        return words("blocks of %llu threads, and the kernel is bound to %u", (unsigned long long)threads, function.entry->max_threads);
    }
    /* A module tells the static memory of all its kernels in one number. */
    size_t fixed = function.code().count == 1 ? function.code().static_len : 0;
    if (shared + fixed > function.dynamic_shared_max) {
        return words("%u bytes of dynamic and %zu of static shared memory, and the kernel may have %u", shared, fixed, function.dynamic_shared_max);
    }
    return nullptr;
}

/* The elements of a float type by its code in prelude.cuh; 0 where there is none. */
static uint64_t float_bytes(int32_t code) { return code == 0 ? 4 : code == 1 || code == 2 ? 2 : 0; }

/* What a pointer to numbers must be aligned to. A struct's alignment is not told: how its parts are accessed is checked when they are. */
static uint32_t alignment_of(const CardParameter& parameter) { return parameter.arithmetic == CARD_OTHER ? 1 : std::max(parameter.element, 1u); }

static const char* check_pointer(const CardParameter& parameter, const unsigned char* value, Range* range) {
    typedef unsigned long long Long;
    uint64_t address;
    int64_t length = 0;
    int32_t code = 0;
    memcpy(&address, value, 8);
    if (parameter.kind == CARD_POINTER) {
        if (!address) return nullptr;
        Allocation* allocation = live_at(address);
        if (!allocation) return describe(address);
        if (address % alignment_of(parameter)) return words("0x%llx is not aligned to %u bytes", (Long)address, parameter.element);
        *range = {address, allocation->end() - address, nullptr};
        return nullptr;
    }
    memcpy(&length, value + 8, 8);
    if (!address && !length) return nullptr;
    uint64_t element = is_table(parameter) ? uint64_t{CARD_RECORD_BYTES} : std::max(parameter.element, 1u);
    if (parameter.kind == CARD_FLOATS) {
        memcpy(&code, value + 16, 4);
        element = float_bytes(code);
        if (!element) return words("type %d is no float type", code);
    }
    if (length < 0 || static_cast<uint64_t>(length) > (1ull << 60) / element) return words("%lld elements", (long long)length);
    Allocation* allocation = live_at(address);
    if (!allocation) return describe(address);
    if (address % element) return words("0x%llx is not aligned to %llu bytes", (Long)address, (Long)element);
    uint64_t bytes = static_cast<uint64_t>(length) * element;
    if (bytes > allocation->end() - address) {
        return words("%lld elements of %llu bytes from byte %llu of allocation %llu, which has %llu", (long long)length, (Long)element,
                     (Long)(address - allocation->begin), (Long)allocation->number, (Long)allocation->size);
    }
    *range = {address, bytes, nullptr};
    return nullptr;
}

/* The arguments, copied at the call as a driver does. */
struct Arguments {
    std::shared_ptr<unsigned char> bytes;
    std::vector<Range> ranges;
    const char* wrong = nullptr;
};

static Arguments copy_arguments(const CardEntry& entry, void** given, const unsigned char* packed, size_t packed_bytes) {
    Arguments arguments;
    size_t total = 0;
    for (uint32_t i = 0; i < entry.count; i++) total = std::max<size_t>(total, entry.parameters[i].offset + entry.parameters[i].size);
    if (total > PARAMETER_BYTES_MAX) {
        arguments.wrong = words("its parameters have %zu bytes, and %zu are the most", total, PARAMETER_BYTES_MAX);
        return arguments;
    }
    if (packed && packed_bytes != total) {
        arguments.wrong = words("%zu bytes of arguments, and its parameters have %zu", packed_bytes, total);
        return arguments;
    }
    if (entry.count && !packed && !given) {
        arguments.wrong = words("no arguments, and it has %u parameters", entry.count);
        return arguments;
    }
    arguments.bytes.reset(new unsigned char[total + 16](), std::default_delete<unsigned char[]>());
    arguments.ranges.resize(entry.count);
    for (uint32_t i = 0; i < entry.count; i++) {
        const CardParameter& parameter = entry.parameters[i];
        unsigned char* to = arguments.bytes.get() + parameter.offset;
        const void* from = packed ? packed + parameter.offset : nullptr;
        bool there = packed || copy_readable(&from, given + i, sizeof from);
        if (!there || !copy_readable(to, from, parameter.size)) {
            arguments.wrong = words("argument %u of %u cannot be read: fewer were given, or a smaller one", i, entry.count);
            return arguments;
        }
        if (parameter.kind == CARD_NUMBER) continue;
        if (const char* why = check_pointer(parameter, to, &arguments.ranges[i])) {
            arguments.wrong = words("argument %u: %s", i, why);
            return arguments;
        }
    }
    return arguments;
}

/* What a kernel may touch, by what its parameters are. Of a table it reads the records; what these name is known when it runs. */
static void declare(Operation& operation, const CardEntry& entry, const Arguments& arguments) {
    operation.declares_reads = true;
    for (uint32_t i = 0; i < entry.count; i++) {
        const Range& range = arguments.ranges[i];
        if (!range.bytes) continue;
        bool writes = kernel_writes(entry, static_cast<int>(i)) && !is_table(entry.parameters[i]);
        (writes ? operation.writes : operation.reads).push_back(whole_range(range.at, range.bytes));
        if (writes && settings().dry) note_origin(range.at, {entry.name, static_cast<int>(i), nullptr, &entry, arguments.bytes, {}});
    }
}

static std::vector<uint64_t> list_written(const CardEntry& entry, const Arguments& arguments) {
    std::vector<uint64_t> written;
    for (uint32_t i = 0; i < entry.count; i++) {
        bool writes = kernel_writes(entry, static_cast<int>(i)) && !is_table(entry.parameters[i]);
        if (arguments.ranges[i].bytes && writes) written.push_back(arguments.ranges[i].at);
    }
    return written;
}

/* nullptr, or why a record of a table describes no buffer. */
static const char* check_record(const CardParameter& parameter, const unsigned char* record, Range* range) {
    typedef unsigned long long Long;
    int64_t length;
    int32_t code;
    memcpy(&range->at, record, 8);
    memcpy(&length, record + 8, 8);
    memcpy(&code, record + 16, 4);
    uint64_t element = parameter.kind == CARD_FLOATS_TABLE ? float_bytes(code) : std::max(parameter.element, 1u);
    if (!element) return words("type %d is no float type", code);
    if (length < 0 || static_cast<uint64_t>(length) > (1ull << 60) / element) return words("%lld elements", (long long)length);
    range->bytes = static_cast<uint64_t>(length) * element;
    if (!range->bytes) return nullptr;
    Allocation* allocation = seen_at(range->at);
    if (!allocation) return describe(range->at);
    if (range->at % element) return words("0x%llx is not aligned to %llu bytes", (Long)range->at, (Long)element);
    if (range->bytes <= allocation->end() - range->at) return nullptr;
    return words("%lld elements of %llu bytes from byte %llu of allocation %llu, which has %llu", (long long)length, (Long)element,
                 (Long)(range->at - allocation->begin), (Long)allocation->number, (Long)allocation->size);
}

/* The buffers of a launch's tables, which lie in the card's memory and are known when it runs: each is checked and declared, and those that
 * the kernel writes are added. nullptr, or what was wrong. */
static const char* open_tables(const CardEntry& entry, const unsigned char* arguments, std::vector<uint64_t>* written) {
    for (uint32_t i = 0; i < entry.count; i++) {
        if (!is_table(entry.parameters[i])) continue;
        const unsigned char* record;
        int64_t count;
        memcpy(&record, arguments + entry.parameters[i].offset, 8);
        memcpy(&count, arguments + entry.parameters[i].offset + 8, 8);
        for (int64_t row = 0; row < count; row++, record += CARD_RECORD_BYTES) {
            Range range{};
            const char* why = card_touch(record, CARD_RECORD_BYTES, 0);
            if (!why) why = check_record(entry.parameters[i], record, &range);
            if (why) return words("record %lld of argument %u: %s", (long long)row, i, why);
            if (!range.bytes) continue;
            declare_read(range);
            if (!kernel_writes(entry, static_cast<int>(i))) continue;
            declare_write(range);
            written->push_back(range.at);
        }
    }
    return nullptr;
}

/* The kernel whose threads this thread runs now. */
static thread_local const char* running;

/* While it lives, the running operation's accesses of these allocations are marked. Marks hold many times an allocation's bytes: those of large
 * ones do not outlive the launch, and the largest have none. */
struct Marked {
    static const uint64_t KEPT_MAX = 1 << 20, BYTES_MAX = 64 << 20;
    std::vector<Allocation*> large;

    explicit Marked(const std::vector<uint64_t>& written) {
        forget_marks();
        if (!settings().races) return;
        for (uint64_t at : written) {
            Allocation* allocation = seen_at(at);
            if (!allocation || allocation->size > BYTES_MAX) continue;
            if (!allocation->marks) {
                allocation->marks = make_marks(allocation->size);
                if (allocation->size > KEPT_MAX) large.push_back(allocation);
            }
            allocation->marked_by = touching;
        }
    }
    ~Marked() {
        for (Allocation* allocation : large) {
            drop_marks(allocation->marks);
            allocation->marks = nullptr;
            allocation->marked_by = 0;
        }
    }
};

/* Of the allocations that a launch writes through its tables, which no line of its call names. */
static void trace_tables(const CardEntry& entry, unsigned stream, const std::vector<uint64_t>& written) {
    std::string begins;
    for (uint64_t at : written) begins += (begins.empty() ? "" : ", ") + std::to_string(seen_at(at)->begin);
    if (!begins.empty()) trace("tables", entry.name, 0, stream, ", \"writes\": [" + begins + "]");
}

static const char* run(const Function& function, const unsigned char* bytes, std::vector<uint64_t> written, unsigned stream, Launch launch) {
    const CardEntry& entry = *function.entry;
    std::vector<void*> parameters(entry.count);
    for (uint32_t i = 0; i < entry.count; i++) parameters[i] = const_cast<unsigned char*>(bytes) + entry.parameters[i].offset;
    launch.parameters = parameters.data();
    std::vector<uint64_t> of_tables;
    if (const char* wrong = open_tables(entry, bytes, &of_tables)) return wrong;
    if (tracing()) trace_tables(entry, stream, of_tables);
    written.insert(written.end(), of_tables.begin(), of_tables.end());
    Marked marked(written);
    launch.order = settings().seed ? random_below(~0ull) : 0;
    running = entry.name;
    const char* wrong = card_run(launch);
    running = nullptr;
    const char* race = say_race(check_last_race());
    return wrong ? wrong : race;
}

const char* running_kernel() { return running; }
}  // namespace card

using namespace card;

CARD_API CUresult cuLaunchKernel(CUfunction handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                                 unsigned block_z, unsigned shared, CUstream stream_handle, void** given, void** extra) {
    ENTER("cuLaunchKernel");
    Function* function = find_function(handle);
    Stream* stream = find_stream(stream_handle);
    if (!function) return refuse("cuLaunchKernel: the function does not exist, or its module was unloaded", CUDA_ERROR_INVALID_HANDLE);
    const CardEntry& entry = *function->entry;
    if (!stream) return refuse(words("cuLaunchKernel of %s: the stream does not exist", entry.name), CUDA_ERROR_INVALID_HANDLE);
    if (device_is_lost()) {
        break_context(CUDA_ERROR_LAUNCH_FAILED);
        return CUDA_ERROR_LAUNCH_FAILED;
    }
    const unsigned char* packed = nullptr;
    size_t packed_bytes = 0;
    for (void** at = extra; at && *at != LAUNCH_PARAM_END; at += 2) {
        if (*at == LAUNCH_PARAM_BUFFER) packed = static_cast<const unsigned char*>(at[1]);
        else if (*at == LAUNCH_PARAM_BUFFER_SIZE) packed_bytes = *static_cast<size_t*>(at[1]);
        else return refuse(words("cuLaunchKernel of %s: extra holds what no driver knows", entry.name), CUDA_ERROR_INVALID_VALUE);
    }
    Launch launch = {};
    launch.entry = function->entry;
    const unsigned grid[3] = {grid_x, grid_y, grid_z}, block[3] = {block_x, block_y, block_z};
    std::copy_n(grid, 3, launch.grid);
    std::copy_n(block, 3, launch.block);
    launch.dynamic_shared = shared;
    launch.static_shared = function->code().static_shared;
    launch.static_len = function->code().static_len;
    const char* wrong = check_shape(*function, grid, block, shared);
    Arguments arguments;
    if (!wrong) {
        arguments = copy_arguments(entry, given, packed, packed_bytes);
        wrong = arguments.wrong;
    }
    if (wrong) return refuse(words("cuLaunchKernel of %s: %s", entry.name, wrong), CUDA_ERROR_INVALID_VALUE);
    counts.launch_count++;
    ++*function->tally;
    std::shared_ptr<unsigned char> bytes = arguments.bytes;
    std::vector<uint64_t> written = list_written(entry, arguments);
    Operation& operation = enqueue(stream, entry.name, [=] { return run(*function, bytes.get(), written, stream->id, launch); });
    declare(operation, entry, arguments);
    if (tracing()) {
        const char* shape = words(", \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], \"shared\": %u", grid_x, grid_y, grid_z, block_x, block_y, block_z, shared);
        trace("launch", entry.name, 0, stream->id, shape + list_writes(operation));
    }
    relieve();
    return CUDA_SUCCESS;
}

CARD_API CUresult cuFuncGetAttribute(int* value, int attribute, CUfunction handle) {
    ENTER("cuFuncGetAttribute");
    Function* function = find_function(handle);
    if (!function) return CUDA_ERROR_INVALID_HANDLE;
    switch (attribute) {
        case FUNCTION_MAX_THREADS: *value = static_cast<int>(function->entry->max_threads); break;
        case FUNCTION_SHARED_BYTES: *value = static_cast<int>(function->code().static_len); break;
        case FUNCTION_PTX_VERSION:
        case FUNCTION_BINARY_VERSION: *value = 89; break;
        case FUNCTION_MAX_DYNAMIC_SHARED: *value = static_cast<int>(function->dynamic_shared_max); break;
        case FUNCTION_REGISTERS: *value = 64; break;
        case FUNCTION_CARVEOUT: *value = -1; break;
        default: *value = 0;
    }
    return CUDA_SUCCESS;
}

CARD_API CUresult cuFuncSetAttribute(CUfunction handle, int attribute, int value) {
    ENTER("cuFuncSetAttribute");
    Function* function = find_function(handle);
    if (!function) return CUDA_ERROR_INVALID_HANDLE;
    if (attribute == FUNCTION_CARVEOUT) return CUDA_SUCCESS;
    if (attribute != FUNCTION_MAX_DYNAMIC_SHARED || value < 0) return CUDA_ERROR_INVALID_VALUE;
    if (static_cast<unsigned>(value) > SHARED_MAX) {
        return refuse(words("cuFuncSetAttribute of %s: %d bytes of shared memory, and a block has at most %u", function->entry->name, value, SHARED_MAX),
                      CUDA_ERROR_INVALID_VALUE);
    }
    function->dynamic_shared_max = value;
    return CUDA_SUCCESS;
}

CARD_API CUresult cuFuncSetCacheConfig(CUfunction, int) {
    ENTER("cuFuncSetCacheConfig");
    return CUDA_SUCCESS;
}

CARD_API CUresult cuFuncGetParamInfo(CUfunction handle, size_t index, size_t* offset, size_t* size) {
    ENTER("cuFuncGetParamInfo");
    Function* function = find_function(handle);
    if (!function) return CUDA_ERROR_INVALID_HANDLE;
    if (index >= function->entry->count) return CUDA_ERROR_INVALID_VALUE;
    *offset = function->entry->parameters[index].offset;
    if (size) *size = function->entry->parameters[index].size;
    return CUDA_SUCCESS;
}

/* By threads and shared memory alone: registers are not known. */
CARD_API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction handle, int threads, size_t shared) {
    ENTER("cuOccupancyMaxActiveBlocksPerMultiprocessor");
    Function* function = find_function(handle);
    if (!function || threads < 1) return CUDA_ERROR_INVALID_VALUE;
    size_t used = shared + function->code().static_len + (1 << 10);
    *blocks = std::min({24, 1536 / threads, static_cast<int>((100 << 10) / used)});
    return CUDA_SUCCESS;
}
