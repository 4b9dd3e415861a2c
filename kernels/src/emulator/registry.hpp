/* Comes after a kernel's text: the table of its entries, with what each parameter is, as templates deduce it. */
#pragma once
#include <type_traits>
#include <utility>

#include "module.hpp"

namespace card {
template <class T> constexpr CardClass class_of() {
    if (std::is_floating_point<T>::value) return CARD_FLOAT;
    if (!std::is_integral<T>::value) return CARD_OTHER;
    return std::is_signed<T>::value ? CARD_SIGNED : CARD_UNSIGNED;
}
template <class T> struct SizeOf {
    static const uint32_t value = sizeof(T);
};
template <> struct SizeOf<void> {
    static const uint32_t value = 1;
};

template <class T, class = void> struct Describe {
    static constexpr CardParameter of() { return {0, sizeof(T), CARD_NUMBER, 1, 0, class_of<T>()}; }
};
template <class T> struct Describe<T*, void> {
    typedef typename std::remove_cv<T>::type Element;
    static constexpr CardParameter of() {
        return {0, sizeof(T*), CARD_POINTER, SizeOf<Element>::value, std::is_const<T>::value, class_of<Element>()};
    }
};
/* A buffer with its length; where it also has a dtype, that says what the elements are. */
template <class T, class = void> struct HasType : std::false_type {};
template <class T> struct HasType<T, decltype((void)std::declval<T>().dtype)> : std::true_type {};
template <class T> struct Describe<T, decltype((void)std::declval<T>().data, (void)std::declval<T>().len)> {
    static constexpr CardParameter of() {
        CardParameter pointer = Describe<decltype(std::declval<T>().data)>::of();
        return {0, sizeof(T), HasType<T>::value ? CARD_FLOATS : CARD_BUFFER, pointer.element, pointer.readonly, pointer.arithmetic};
    }
};

/* Many of them: the records are not written to. */
template <class T> struct Describe<T, decltype((void)std::declval<T>().records, (void)std::declval<T>().len)> {
    static_assert(sizeof(*std::declval<T>().records) == CARD_RECORD_BYTES, "a record as the host makes it");
    static constexpr CardParameter of() {
        CardParameter row = Describe<decltype(std::declval<T>()[0])>::of();
        return {0, sizeof(T), row.kind == CARD_FLOATS ? CARD_FLOATS_TABLE : CARD_TABLE, row.element, 1, row.arithmetic};
    }
};

template <auto function> struct Kernel;
template <class... T, void (*function)(T...)> struct Kernel<function> {
    /* One more, for an array has at least one. */
    struct Table {
        CardParameter all[sizeof...(T) + 1];
    };
    static constexpr Table describe() {
        Table table = {{Describe<typename std::remove_cv<T>::type>::of()..., CardParameter{}}};
        const size_t alignments[] = {alignof(T)..., 1};
        size_t offset = 0;
        for (size_t i = 0; i < sizeof...(T); i++) {
            offset = (offset + alignments[i] - 1) / alignments[i] * alignments[i];
            table.all[i].offset = (uint32_t)offset;
            offset += table.all[i].size;
        }
        return table;
    }
    static constexpr Table table = describe();
    template <size_t... i> __attribute__((no_sanitize("thread"))) static void call(void* const* given, std::index_sequence<i...>) {
        function(*(typename std::remove_cv<T>::type*)given[i]...);
    }
    __attribute__((no_sanitize("thread"))) static void run(void* const* given) { call(given, std::index_sequence_for<T...>()); }
    static constexpr CardEntry entry(const char* name, unsigned max_threads) {
        return {name, max_threads, sizeof...(T), table.all, run};
    }
};
}  // namespace card

extern "C" {
extern char __bss_start[] __attribute__((visibility("hidden"))), _end[] __attribute__((visibility("hidden")));
__attribute__((visibility("default"), no_sanitize("thread"))) void card_shared(void** begin, size_t* len) {
    *begin = __bss_start;
    *len = (size_t)(_end - __bss_start);
}
}

/* The table of a module's entries, the last of which is empty. */
#define CARD_ENTRY(name) card::Kernel<&::name>::entry(#name, 1024)
#define CARD_TABLE(...)                                                                                                          \
    extern "C" __attribute__((visibility("default"), no_sanitize("thread"))) const CardEntry* card_entries(size_t* count) {    \
        static const CardEntry entries[] = {__VA_ARGS__};                                                                       \
        *count = sizeof entries / sizeof *entries - 1;                                                                          \
        return entries;                                                                                                         \
    }
