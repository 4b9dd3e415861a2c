/* Stacks that a kernel's threads run on, and the switch from one to another. */
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <sys/mman.h>
#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace card {
/* A thread of a kernel has little on its stack. */
static const size_t STACK_BYTES = 64 << 10;
/* Stacks begin at different places of a page, or the same few lines of the cache would have to hold all of them. */
static const size_t COLOURS = 29, COLOUR_BYTES = 192;
/* Lies where a stack ends, and no longer does when one was too small. */
static const uint64_t STACK_END = 0x5afe5afe5afe5afe;

#ifdef __x86_64__
extern "C" __attribute__((visibility("hidden"))) void card_switch(void** from, void* to);
/* What a call must preserve is kept on the stack that is left. */
asm(R"(
    .text
    .p2align 4
    .type card_switch, @function
card_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size card_switch, . - card_switch
)");
struct Context {
    void* stack_pointer = nullptr;

    void prepare(char* stack_top, void (*entry)()) {
        /* As a call would leave it: the return address lies where the stack is aligned to 16, and nothing returns from `entry`. */
        void** top = (void**)((uintptr_t)stack_top / 16 * 16 - 16);
        top[0] = (void*)entry;
        top[1] = nullptr;
        stack_pointer = top - 6;
    }
    void switch_to(Context& other) { card_switch(&stack_pointer, other.stack_pointer); }
    /* Soon to be switched to. */
    void prefetch() const {
        __builtin_prefetch(stack_pointer);
        __builtin_prefetch((char*)stack_pointer + 64);
        __builtin_prefetch((char*)stack_pointer + 128);
    }
};
#else
/* Slower, for the signal mask is switched too. */
struct Context {
    ucontext_t context;

    void prepare(char* stack_top, void (*entry)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = stack_top - STACK_BYTES;
        context.uc_stack.ss_size = STACK_BYTES;
        makecontext(&context, entry, 0);
    }
    void switch_to(Context& other) { swapcontext(&context, &other.context); }
    void prefetch() const {}
};
#endif

/* Stacks for as many threads as a block may have, in memory that is taken as it is used. */
class Stacks {
public:
    static const unsigned COUNT = 1024;

    /* Where the stack of this number begins; it grows down. */
    char* top(unsigned number) {
        end(number) = STACK_END;
        return (char*)&end(number) + STACK_BYTES + number % COLOURS * COLOUR_BYTES;
    }
    bool overflowed(unsigned number) { return end(number) != STACK_END; }

private:
    static const size_t STRIDE = STACK_BYTES + COLOURS * COLOUR_BYTES;
    char* all = nullptr;

    uint64_t& end(unsigned number) {
        if (!all) {
            void* memory = mmap(nullptr, COUNT * STRIDE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (memory == MAP_FAILED) abort();
            all = (char*)memory;
        }
        return *(uint64_t*)(all + number * STRIDE);
    }
};
}  // namespace card
