/* Runs every case in a process and a card of its own, and says which did not end as they must. */
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <map>

#include "card.hpp"

std::vector<Case>& cases() {
    static std::vector<Case> all;
    return all;
}

CUcontext open_card() {
    CUcontext context;
    OK(cuInit(0));
    OK(cuDevicePrimaryCtxRetain(&context, 0));
    OK(cuCtxSetCurrent(context));
    return context;
}

CUstream new_stream(unsigned flags) {
    CUstream stream;
    OK(cuStreamCreate(&stream, flags));
    return stream;
}

CUevent new_event() {
    CUevent event;
    OK(cuEventCreate(&event, 0));
    return event;
}

CUfunction kernel(const char* name) {
    static CUmodule module;
    if (!module) OK(cuModuleLoad(&module, getenv("CARD_TEST_KERNELS")));
    CUfunction function;
    OK(cuModuleGetFunction(&function, module, name));
    return function;
}

CUdeviceptr unwritten(size_t bytes, CUstream stream) {
    CUdeviceptr at;
    OK(cuMemAllocAsync(&at, bytes, stream));
    return at;
}

CUdeviceptr floats(size_t count, float value, CUstream stream) {
    CUdeviceptr at = unwritten(count * 4, stream);
    std::vector<float> values(count, value);
    OK(cuMemcpyHtoDAsync_v2(at, values.data(), count * 4, stream));
    return at;
}

std::vector<float> read_floats(CUdeviceptr at, size_t count, CUstream stream) {
    std::vector<float> values(count);
    OK(cuMemcpyDtoHAsync_v2(values.data(), at, count * 4, stream));
    return values;
}

CUresult launch(const char* name, CUstream stream, unsigned threads, std::vector<void*> arguments) {
    return cuLaunchKernel(kernel(name), 1, 1, 1, threads, 1, 1, 0, stream, arguments.data(), nullptr);
}

CUresult add(CUdeviceptr to, CUdeviceptr from, long long count, CUstream stream) {
    return launch("add", stream, 256, {&to, &from, &count});
}

size_t free_bytes() {
    size_t free, total;
    OK(cuMemGetInfo_v2(&free, &total));
    return free;
}

static void remove_all(const std::string& dir) {
    DIR* opened = opendir(dir.c_str());
    if (!opened) return;
    while (dirent* entry = readdir(opened)) unlink((dir + "/" + entry->d_name).c_str());
    closedir(opened);
    rmdir(dir.c_str());
}

static std::string read_all(int file) {
    std::string text;
    char part[4096];
    for (ssize_t got; (got = read(file, part, sizeof part)) > 0;) text.append(part, got);
    return text;
}

/* nullptr when the case ended as it must, else what was wrong. */
static std::string run_case(const Case& test, const std::string& dir, const char* seed) {
    mkdir(dir.c_str(), 0700);
    int pipes[2];
    if (pipe(pipes) != 0) return "no pipe";
    pid_t child = fork();
    if (child == 0) {
        dup2(pipes[1], STDERR_FILENO);
        close(pipes[0]);
        close(pipes[1]);
        setenv("CARD_DIR", dir.c_str(), 1);
        setenv("CARD_SEED", seed, 1);
        for (const auto& [name, value] : test.environment) setenv(name, value, 1);
        execl("/proc/self/exe", "card-test", test.name, nullptr);
        _exit(127);
    }
    close(pipes[1]);
    std::string said = read_all(pipes[0]);
    close(pipes[0]);
    int status = 0;
    waitpid(child, &status, 0);
    remove_all(dir);
    if (!test.refusal) {
        bool well = WIFEXITED(status) && WEXITSTATUS(status) == 0 && said.find("refused") == std::string::npos;
        return well ? "" : "must end well, and ended with " + std::to_string(status) + ": " + said;
    }
    bool aborted = WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
    bool by_name = said.find("card: refused: ") != std::string::npos && said.find(test.refusal) != std::string::npos;
    return aborted && by_name ? "" : std::string("must be refused with \"") + test.refusal + "\", and ended with " + std::to_string(status) + ": " + said;
}

int main(int count, char** arguments) {
    for (const Case& test : cases()) {
        if (count != 2 || strcmp(test.name, arguments[1]) != 0) continue;
        test.run();
        return 0;
    }
    const char* home = getenv("TMPDIR");
    std::string dir = std::string(home ? home : "/dev/shm") + "/card-test-" + std::to_string(getpid());
    int failed = 0, ran = 0;
    for (const Case& test : cases()) {
        if (count == 2 && !strstr(test.name, arguments[1])) continue;
        for (const char* seed : {"0", "1", "2"}) {
            std::string wrong = run_case(test, dir, seed);
            ran++;
            if (wrong.empty()) continue;
            failed++;
            printf("FAILED %s (CARD_SEED=%s): %s\n", test.name, seed, wrong.c_str());
        }
    }
    printf("%d runs of %zu cases, %d failed\n", ran, cases().size(), failed);
    return failed || !ran ? 1 : 0;
}
