/* Failures that are asked for, memory among processes, and what is counted. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <iterator>

#include "card.hpp"

static CUresult allocate(size_t bytes) {
    CUdeviceptr at;
    return cuMemAllocAsync(&at, bytes, nullptr);
}

LEGAL(the_second_allocation_fails, {"CARD_FAIL_ALLOC", "2"}) {
    open_card();
    OK(allocate(16));
    EXPECT(allocate(16) == CUDA_ERROR_OUT_OF_MEMORY);
    OK(allocate(16));
}

LEGAL(all_allocations_from_the_second_on_fail, {"CARD_FAIL_ALLOC", "2+"}) {
    open_card();
    OK(allocate(16));
    for (int i = 0; i < 3; i++) EXPECT(allocate(16) == CUDA_ERROR_OUT_OF_MEMORY);
}

static std::string in_dir(const char* name) { return std::string(getenv("CARD_DIR")) + "/" + name; }

static void write_file(const std::string& path, const char* text) { std::ofstream(path) << text; }

static std::string read_file(const std::string& path) {
    std::ifstream file(path);
    return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

LEGAL(a_file_says_what_fails_while_the_program_runs) {
    std::string path = in_dir("fail");
    setenv("CARD_FAIL_FILE", path.c_str(), 1);
    open_card();
    for (int i = 0; i < 5; i++) OK(allocate(16));
    write_file(path, "CARD_FAIL_ALLOC=+2\n");
    OK(allocate(16));
    EXPECT(allocate(16) == CUDA_ERROR_OUT_OF_MEMORY);
    OK(allocate(16));
    write_file(path, "CARD_FAIL_ALLOC=1+\n");
    EXPECT(allocate(16) == CUDA_ERROR_OUT_OF_MEMORY);
    write_file(path, "CARD_FAIL_ALLOC=*\n");
    OK(allocate(16));
}

LEGAL(a_lost_device_stays_lost, {"CARD_LOST_AT", "2"}) {
    open_card();
    CUdeviceptr to = floats(4, 1, nullptr), from = floats(4, 1, nullptr);
    OK(add(to, from, 4, nullptr));
    EXPECT(add(to, from, 4, nullptr) == CUDA_ERROR_LAUNCH_FAILED);
    EXPECT(allocate(16) == CUDA_ERROR_LAUNCH_FAILED);
    EXPECT(cuStreamSynchronize(nullptr) == CUDA_ERROR_LAUNCH_FAILED);
    float host[4];
    EXPECT(cuMemcpyDtoHAsync_v2(host, to, 16, nullptr) == CUDA_ERROR_LAUNCH_FAILED);
    EXPECT(cuMemFreeAsync(to, nullptr) == CUDA_ERROR_LAUNCH_FAILED);
}

CASE_IN(a_refusal_can_be_an_error, "ended as asked", {"CARD_REFUSE", "error"}) {
    open_card();
    CUdeviceptr to = unwritten(16, nullptr), from = floats(4, 1, nullptr);
    OK(add(to, from, 4, nullptr));
    EXPECT(cuCtxSynchronize() == CUDA_ERROR_ILLEGAL_ADDRESS);
    EXPECT(allocate(16) == CUDA_ERROR_ILLEGAL_ADDRESS);
    EXPECT(read_file(in_dir("refusals")).find("that nothing has written") != std::string::npos);
    fprintf(stderr, "ended as asked\n");
    abort();
}

LEGAL(a_small_card_is_soon_full, {"CARD_MIB", "600"}, {"CARD_CONTEXT_MIB", "400"}) {
    open_card();
    EXPECT(free_bytes() == 200 << 20);
    EXPECT(allocate(300 << 20) == CUDA_ERROR_OUT_OF_MEMORY);
    OK(allocate(150 << 20));
    EXPECT(allocate(100 << 20) == CUDA_ERROR_OUT_OF_MEMORY);
    OK(allocate(20 << 20));
}

LEGAL(a_full_card_waits_for_frees_before_it_gives_up, {"CARD_MIB", "600"}, {"CARD_CONTEXT_MIB", "400"}) {
    open_card();
    CUstream one = new_stream(), two = new_stream();
    CUdeviceptr at = unwritten(150 << 20, one);
    OK(cuMemsetD8Async(at, 0, 16, one));
    OK(cuMemFreeAsync(at, one));
    OK(cuMemsetD8Async(unwritten(150 << 20, two), 0, 16, two));
    OK(cuCtxSynchronize());
}

LEGAL(no_card_for_a_context, {"CARD_MIB", "100"}, {"CARD_CONTEXT_MIB", "400"}) {
    CUcontext context;
    OK(cuInit(0));
    EXPECT(cuDevicePrimaryCtxRetain(&context, 0) == CUDA_ERROR_OUT_OF_MEMORY);
}

LEGAL(a_released_context_gives_its_memory_back) {
    open_card();
    size_t before = free_bytes();
    OK(allocate(100 << 20));
    OK(cuDevicePrimaryCtxRelease_v2(0));
    open_card();
    EXPECT(free_bytes() == before);
}

/* Another process on the same card, which takes memory and waits for its end. */
static pid_t neighbour(size_t bytes, int ready[2]) {
    EXPECT(pipe(ready) == 0);
    pid_t child = fork();
    if (child) {
        char done;
        EXPECT(read(ready[0], &done, 1) == 1);
        return child;
    }
    open_card();
    OK(allocate(bytes));
    EXPECT(write(ready[1], "x", 1) == 1);
    pause();
    exit(0);
}

LEGAL(two_processes_share_the_card_and_a_killed_one_gives_back, {"CARD_MIB", "1000"}, {"CARD_CONTEXT_MIB", "100"}) {
    int ready[2];
    pid_t child = neighbour(500 << 20, ready);
    open_card();
    EXPECT(free_bytes() == 300 << 20);
    EXPECT(allocate(400 << 20) == CUDA_ERROR_OUT_OF_MEMORY);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    EXPECT(free_bytes() == 900ull << 20);
    OK(allocate(400 << 20));
}

LEGAL(a_killed_process_gives_back_to_who_only_allocates, {"CARD_MIB", "1000"}, {"CARD_CONTEXT_MIB", "100"}) {
    int ready[2];
    pid_t child = neighbour(500 << 20, ready);
    open_card();
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    OK(allocate(800 << 20));
}

LEGAL(what_is_done_is_counted) {
    open_card();
    CUdeviceptr to = floats(4, 1, nullptr), from = floats(4, 1, nullptr);
    for (int i = 0; i < 3; i++) OK(add(to, from, 4, nullptr));
    OK(cuMemsetD8Async(from, 0, 16, nullptr));
    read_floats(to, 4, nullptr);
    OK(cuMemFreeAsync(to, nullptr));
    OK(cuCtxSynchronize());
    std::string counts = read_file(in_dir(("counts-" + std::to_string(getpid()) + ".json").c_str()));
    for (const char* part : {"\"launches\": 3", "\"add\": 3", "\"host_to_device\": {\"bytes\": 32, \"count\": 2}",
                             "\"device_to_host\": {\"bytes\": 16, \"count\": 1}", "\"fills\": {\"bytes\": 16, \"count\": 1}",
                             "\"synchronizations\": {\"context\": 1, \"copy\": 1, \"total\": 2}",
                             "\"allocations\": {\"count\": 2, \"failed\": 0, \"frees\": 1}", "\"live_bytes\": 16", "\"live_peak_bytes\": 32"}) {
        if (counts.find(part) == std::string::npos) fprintf(stderr, "no %s in %s\n", part, counts.c_str());
        EXPECT(counts.find(part) != std::string::npos);
    }
}

LEGAL(what_is_done_is_traced) {
    std::string path = in_dir("trace");
    setenv("CARD_TRACE", path.c_str(), 1);
    if (fork() == 0) {
        open_card();
        CUdeviceptr to = floats(4, 1, nullptr);
        OK(add(to, floats(4, 1, nullptr), 4, nullptr));
        OK(cuCtxSynchronize());
        exit(0);
    }
    int status;
    wait(&status);
    EXPECT(status == 0);
    std::string trace = read_file(path);
    EXPECT(trace.find("\"kind\": \"launch\", \"name\": \"add\"") != std::string::npos);
    EXPECT(trace.find("\"grid\": [1, 1, 1], \"block\": [256, 1, 1]") != std::string::npos);
    EXPECT(trace.find("\"kind\": \"allocate\", \"name\": \"cuMemAllocAsync\", \"bytes\": 16, \"stream\": 0, \"live\": 32") != std::string::npos);
}

LEGAL(every_wait_is_traced_once) {
    std::string path = in_dir("trace");
    setenv("CARD_TRACE", path.c_str(), 1);
    if (fork() == 0) {
        open_card();
        CUdeviceptr at;
        float value = 1;
        OK(cuMemAlloc_v2(&at, 4));
        OK(cuMemcpyHtoD_v2(at, &value, 4));
        OK(cuMemFree_v2(at));
        exit(0);
    }
    int status;
    wait(&status);
    EXPECT(status == 0);
    std::string trace = read_file(path), waits = "\"kind\": \"synchronize\", \"name\": ";
    for (const char* name : {"\"copy\"", "\"free\""}) {
        size_t at = trace.find(waits + name);
        EXPECT(at != std::string::npos && trace.find(waits + name, at + 1) == std::string::npos);
    }
}

/* What tests/card/live.py says of the trace. */
static std::string live(const std::string& trace, const std::string& options) {
    std::string here = __FILE__, script = here.substr(0, here.rfind('/')) + "/../../live.py";
    FILE* said = popen(("python3 " + script + " " + trace + options).c_str(), "r");
    std::string text;
    char part[4096];
    while (size_t got = fread(part, 1, sizeof part, said)) text.append(part, got);
    EXPECT(pclose(said) == 0);
    return text;
}

static bool has(const std::string& text, const char* part) {
    if (text.find(part) == std::string::npos) fprintf(stderr, "no %s in %s\n", part, text.c_str());
    return text.find(part) != std::string::npos;
}

LEGAL(what_is_written_through_a_table_has_its_writer_though_it_is_freed_before_it_runs) {
    std::string path = in_dir("trace");
    setenv("CARD_TRACE", path.c_str(), 1);
    if (fork() == 0) {
        open_card();
        struct {
            CUdeviceptr at;
            long long length, type;
            char rest[8];
        } record{unwritten(1 << 20, nullptr), 4, 0, {}};
        struct {
            CUdeviceptr at;
            long long length;
        } table{unwritten(sizeof record, nullptr), 1};
        OK(cuMemcpyHtoDAsync_v2(table.at, &record, sizeof record, nullptr));
        OK(launch("join_many", nullptr, 32, {&table}));
        OK(cuMemFreeAsync(record.at, nullptr));
        OK(cuCtxSynchronize());
        exit(0);
    }
    int status;
    wait(&status);
    EXPECT(status == 0);
    EXPECT(has(live(path, ""), "| 1.0 | 1 | 1048576 | join_many | 1 |"));
}

LEGAL(what_was_live_at_the_peak_is_told_with_who_wrote_it) {
    std::string path = in_dir("trace");
    setenv("CARD_TRACE", path.c_str(), 1);
    if (fork() == 0) {
        open_card();
        CUdeviceptr copied = floats(1 << 18, 1, nullptr), other = floats(1 << 18, 1, nullptr), zeroed = unwritten(2 << 20, nullptr);
        OK(cuMemsetD8Async(zeroed, 0, 2 << 20, nullptr));
        CUdeviceptr made = unwritten(512 << 10, nullptr), none = 0, unused = unwritten(256 << 10, nullptr);
        OK(cuMemFreeAsync(unused, nullptr));
        OK(launch("optional", nullptr, 32, {&made, &none}));
        OK(cuMemFreeAsync(zeroed, nullptr));
        /* At an address of before, perhaps, and below the peak. */
        OK(cuMemcpyDtoDAsync_v2(unwritten(1 << 20, nullptr), copied, 1 << 20, nullptr));
        OK(add(copied, other, 4, nullptr));
        OK(cuCtxSynchronize());
        exit(0);
    }
    int status;
    wait(&status);
    EXPECT(status == 0);
    std::string at_peak = live(path, "");
    EXPECT(has(at_peak, "after line 8: 4.8 MiB in 5 allocations"));
    EXPECT(has(at_peak, "| 2.0 | 2 | 1048576 | cuMemcpyHtoDAsync | 1 |"));
    EXPECT(has(at_peak, "| 2.0 | 1 | 2097152 | cuMemsetD8Async | 5 |"));
    EXPECT(has(at_peak, "| 0.5 | 1 | 524288 | optional | 7 |"));
    EXPECT(has(at_peak, "| 0.2 | 1 | 262144 | nothing | 8 |"));
    EXPECT(has(live(path, " --at 12"), "| 1.0 | 1 | 1048576 | cuMemcpyDtoDAsync | 12 |"));
    EXPECT(has(live(path, " --at 1"), "after line 1: 1.0 MiB in 1 allocations"));
}
