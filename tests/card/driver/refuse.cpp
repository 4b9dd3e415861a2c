/* Refusals: what a card would not have taken, said by name, and what follows. */
#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <ucontext.h>
#include <unistd.h>

#include "count.hpp"
#include "engine.hpp"
#include "transfer.hpp"

namespace card {
static CUresult context_error = CUDA_SUCCESS;
static struct sigaction earlier_segv, earlier_bus;
static thread_local sigjmp_buf* reading;

const char* words(const char* format, ...) {
    static thread_local char buffers[16][700];
    static thread_local unsigned next;
    char* buffer = buffers[next++ % 16];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(buffer, sizeof buffers[0], format, arguments);
    va_end(arguments);
    return buffer;
}

CUresult broken() { return context_error; }

void break_context(CUresult error) {
    if (context_error == CUDA_SUCCESS) context_error = error;
    /* Nothing runs any more. */
    end_all_flights();
}

static void write_refusal(const char* what) {
    const char* line = words("card: refused: %s\n", what);
    ssize_t ignored = write(STDERR_FILENO, line, strlen(line));
    std::string path = settings().dir + "/refusals";
    int file = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (file >= 0) {
        ignored = write(file, line, strlen(line));
        close(file);
    }
    (void)ignored;
}

static void note_refusal(const char* what) {
    write_refusal(what);
    count_refusal(what);
}

[[noreturn]] static void end() {
    write_counts();
    write_trace();
    abort();
}

CUresult refuse(const char* what, CUresult error) {
    note_refusal(what);
    if (settings().error_instead) {
        break_context(error);
        return error;
    }
    end();
}

static void on_fault(int signal, siginfo_t* info, void* context) {
    if (reading) siglongjmp(*reading, 1);
    uint64_t at = reinterpret_cast<uint64_t>(info->si_addr);
    bool writes = static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & 2;
    if (at >= card_begin && at < card_end) {
        note_refusal(words("the host %s device memory: %s", writes ? "wrote" : "read", describe(at)));
        end();
    }
    if (is_pinned(info->si_addr, 1)) {
        const char* flight = describe_flight(at);
        /* Another thread has just waited for it: it is open now. */
        if (!flight) return;
        note_refusal(words("the host %s %s", writes ? "wrote" : "read", flight));
        end();
    }
    if (const char* kernel = running_kernel()) {
        note_refusal(words("%s: an access of %p, which is nobody's memory", kernel, info->si_addr));
        end();
    }
    /* Not ours: whoever handled it before does. */
    sigaction(signal, signal == SIGSEGV ? &earlier_segv : &earlier_bus, nullptr);
}

void watch_host_accesses() {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &earlier_segv);
    sigaction(SIGBUS, &action, &earlier_bus);
}

bool copy_readable(void* to, const void* from, size_t bytes) {
    sigjmp_buf here;
    if (sigsetjmp(here, 0)) {
        reading = nullptr;
        return false;
    }
    reading = &here;
    memcpy(to, from, bytes);
    /* The copy must not be moved past this. */
    asm volatile("" ::: "memory");
    reading = nullptr;
    return true;
}
}  // namespace card
