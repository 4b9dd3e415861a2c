/* Stacks that a kernel's threads run on, and the switch from one to another. */
#pragma once
#include <cstdint>
#include <cstdlib>
#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace card {
/* Of a fiber; a thread of a kernel has little on its stack. */
static const size_t STACK_BYTES = 256 << 10;
static const size_t COLOURS = 61, COLOUR_BYTES = 320;

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
};
#endif

struct Fiber {
    Context context;
    char* stack;
    unsigned number;

    explicit Fiber(unsigned number) : stack((char*)malloc(STACK_BYTES + COLOURS * COLOUR_BYTES)), number(number) {}
    /* Stacks begin at different places of a page, or the same few lines of the cache would have to hold all of them. */
    char* top() const { return stack + STACK_BYTES + number % COLOURS * COLOUR_BYTES; }
};
}  // namespace card
