#include "source.hpp"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <set>

namespace card {
namespace {
enum Kind { WORD, TEXT, MARK, BLANK };

struct Token {
    Kind kind;
    std::string text;
};

bool is_word(char c) { return isalnum((unsigned char)c) || c == '_'; }

/* The end of the string or character that begins at `at`. */
size_t end_of_literal(const std::string& text, size_t at) {
    if (at > 0 && text[at] == '"' && text[at - 1] == 'R') {
        size_t open = text.find('(', at);
        if (open == std::string::npos) return text.size();
        std::string close = ")" + text.substr(at + 1, open - at - 1) + "\"";
        size_t end = text.find(close, open);
        return end == std::string::npos ? text.size() : end + close.size();
    }
    size_t end = at + 1;
    while (end < text.size() && text[end] != text[at]) end += text[end] == '\\' ? 2 : 1;
    return std::min(end + 1, text.size());
}

std::vector<Token> tokens_of(const std::string& text) {
    std::vector<Token> tokens;
    for (size_t at = 0, end; at < text.size(); at = end) {
        char c = text[at];
        Kind kind = MARK;
        end = at + 1;
        if (isspace((unsigned char)c)) {
            kind = BLANK;
            while (end < text.size() && isspace((unsigned char)text[end])) end++;
        } else if (c == '#' && (at == 0 || text[at - 1] == '\n')) {
            kind = BLANK;
            while (end < text.size() && text[end] != '\n') end++;
        } else if (is_word(c)) {
            kind = WORD;
            /* A quote within a number separates its digits. */
            bool number = isdigit((unsigned char)c);
            while (end < text.size() && (is_word(text[end]) || (number && text[end] == '\'' && end + 1 < text.size() && is_word(text[end + 1])))) end++;
        } else if (c == '"' || c == '\'') {
            kind = TEXT;
            end = end_of_literal(text, at);
        }
        tokens.push_back({kind, text.substr(at, end - at)});
    }
    return tokens;
}

class Translator {
public:
    explicit Translator(std::vector<Token> tokens) : tokens(std::move(tokens)) {}

    Source run() {
        for (at = 0; at < tokens.size(); at++) {
            const std::string& text = tokens[at].text;
            if (tokens[at].kind == MARK) follow_braces(text);
            if (tokens[at].kind == BLANK) follow_lines(text);
            if (tokens[at].kind != WORD) continue;
            if (text == "__global__") take_kernel();
            else if (text == "__shared__") take_shared();
            else if (text == "asm" || text == "__asm" || text == "__asm__") check_asm();
            else if (text == "extern" && is_c_linkage(at)) take_host_entry();
        }
        for (const Token& token : tokens) source.text += token.text;
        return std::move(source);
    }

private:
    std::vector<Token> tokens;
    Source source;
    size_t at = 0;
    std::vector<bool> linkage;  // of the open braces: whether each is that of extern "C"
    std::string file;           // of the text here, as the preprocessor says
    size_t line = 0;
    bool in_system_header = false;
    std::set<std::string> system_headers;

    size_t next(size_t from) const {
        for (from++; from < tokens.size() && tokens[from].kind == BLANK;) from++;
        return from;
    }
    size_t before(size_t from) const {
        while (from-- > 0 && tokens[from].kind == BLANK) {}
        return from;
    }
    bool is(size_t index, const char* text) const { return index < tokens.size() && tokens[index].text == text; }
    bool is_c_linkage(size_t index) const { return is(index, "extern") && is(next(index), "\"C\""); }

    void follow_braces(const std::string& text) {
        if (text == "{") {
            size_t literal = before(at);
            linkage.push_back(is(literal, "\"C\"") && is(before(literal), "extern"));
        } else if (text == "}" && !linkage.empty()) {
            linkage.pop_back();
        }
    }

    /* `# 12 "file" 1 3`: the next line is the file's 12th; 1 says that the file begins here, and 3 that it is a header of the system's. What has 3
     * without 1 may be any that says so of itself. */
    void follow_lines(const std::string& text) {
        size_t open = text.find('"'), close = text.rfind('"');
        if (text.compare(0, 2, "# ") != 0 || !isdigit((unsigned char)text[2]) || open == close) {
            line += std::count(text.begin(), text.end(), '\n');
            return;
        }
        line = strtoul(text.c_str() + 1, nullptr, 10) - 1;
        file = text.substr(open + 1, close - open - 1);
        bool begins = text.find('1', close) != std::string::npos;
        if (begins && text.find('3', close) != std::string::npos) system_headers.insert(file);
        in_system_header = system_headers.count(file);
    }

    /* Instructions of a card, which nothing here runs. The asm of a declaration names a function for the linker. */
    void check_asm() {
        size_t open = next(at);
        while (is(open, "volatile") || is(open, "__volatile__")) open = next(open);
        if (in_system_header || !is(open, "(")) return;
        std::string code;
        for (size_t i = next(open); i < tokens.size() && tokens[i].kind != MARK; i = next(i)) code += tokens[i].text;
        auto is_symbol = [](char c) { return is_word(c) || c == '"'; };
        if (std::all_of(code.begin(), code.end(), is_symbol)) return;
        complain("at " + file + ":" + std::to_string(line) + ": inline PTX " + code + ": the card in software runs none. Say in C++ what the "
                 "instruction does, and use the asm only where CARD_IN_SOFTWARE is not defined");
    }

    /* The index of the bracket that closes the one at `open`. */
    size_t closing(size_t open) const {
        int depth = 0;
        for (size_t i = open; i < tokens.size(); i++) {
            if (is(i, "(") || is(i, "[") || is(i, "{")) depth++;
            if ((is(i, ")") || is(i, "]") || is(i, "}")) && --depth == 0) return i;
        }
        return tokens.size();
    }

    void complain(const std::string& what) {
        if (source.error.empty()) source.error = what;
    }

    /* Whether the declaration that token `index` belongs to begins with extern "C". */
    bool has_c_linkage(size_t index) const {
        if (std::find(linkage.begin(), linkage.end(), true) != linkage.end()) return true;
        for (size_t i = index; i-- > 0 && !is(i, ";") && !is(i, "}");)
            if (is_c_linkage(i)) return true;
        return false;
    }

    void take_kernel() {
        SourceEntry entry;
        bool c_linkage = has_c_linkage(at);
        tokens[at].text = "__attribute__((noinline, used))";
        for (size_t i = next(at); i < tokens.size() && !is(i, ";") && !is(i, "{"); i = next(i)) {
            if (is(i, "__launch_bounds__")) {
                entry.max_threads = take_bounds(i);
            } else if (is(i, "__attribute__")) {
                i = closing(next(i));
            } else if (is(next(i), "(")) {
                entry.name = tokens[i].text;
                entry.parameters = names_of_parameters(next(i));
                break;
            }
        }
        if (entry.name.empty()) return complain("a __global__ without a function");
        if (!c_linkage) return complain("the kernel " + entry.name + " is not extern \"C\", and other names are not supported here");
        auto same = [&](const SourceEntry& other) { return other.name == entry.name; };
        auto known = std::find_if(source.entries.begin(), source.entries.end(), same);
        if (known == source.entries.end()) source.entries.push_back(entry);
        else if (known->max_threads.empty()) known->max_threads = entry.max_threads;
    }

    /* The last word before each comma of the list that begins at `open`. */
    std::vector<std::string> names_of_parameters(size_t open) const {
        std::vector<std::string> names;
        std::string word;
        int depth = 0;
        for (size_t i = next(open), close = closing(open); i <= close; i = next(i)) {
            if (is(i, "(") || is(i, "[") || is(i, "{") || is(i, "<")) depth++;
            if (depth == 0 && (is(i, ",") || i == close)) {
                if (!word.empty() && !(names.empty() && word == "void")) names.push_back(word);
                word.clear();
            }
            if (depth == 0 && tokens[i].kind == WORD && !is(i, "__restrict__")) word = tokens[i].text;
            if (is(i, ")") || is(i, "]") || is(i, "}") || is(i, ">")) depth--;
        }
        return names;
    }

    /* Takes __launch_bounds__(...) at `index` out of the text; what it says of threads. */
    std::string take_bounds(size_t& index) {
        size_t open = next(index), close = closing(open);
        std::string threads;
        int depth = 0;
        bool first = true;
        for (size_t i = open; i <= close && i < tokens.size(); i++) {
            if (is(i, "(")) depth++;
            if (is(i, ")")) depth--;
            if (depth == 1 && is(i, ",")) first = false;
            if (first && i != open && i != close) threads += tokens[i].text;
            tokens[i].text.clear();
        }
        tokens[index].text.clear();
        index = close;
        return threads;
    }

    /* Static arrays are static; what is extern is the launch's own memory, to which its name points. */
    void take_shared() {
        size_t other = is(before(at), "extern") ? before(at) : next(at);
        if (!is(other, "extern")) {
            tokens[at].text = "static";
            return;
        }
        tokens[at].text.clear();
        tokens[other].text.clear();
        size_t name = std::max(at, other), open = next(name);
        std::string type;
        for (; open < tokens.size() && !is(open, "[") && !is(open, ";"); open = next(open)) {
            if (is(open, "__attribute__") || is(open, "alignas")) {
                size_t close = closing(next(open));
                for (size_t i = open; i <= close; i++) tokens[i].text.clear();
                open = close;
                continue;
            }
            if (name > std::max(at, other)) type += tokens[name].text + " ";
            name = open;
        }
        size_t close = closing(open);
        if (!is(open, "[") || !is(next(close), ";")) return complain("an extern __shared__ that is no array of one dimension");
        tokens[name].text = "* const " + tokens[name].text + " = (" + type + "*)card_shared_memory";
        for (size_t i = open; i <= close; i++) tokens[i].text.clear();
    }

    void take_host_entry() {
        size_t name = next(next(at));
        for (size_t i = name; i < tokens.size() && !is(i, "(") && !is(i, "{") && !is(i, ";"); i = next(i)) {
            if (is(i, "__global__")) return;
            name = i;
        }
        size_t open = next(name);
        if (is(open, "(") && is(next(closing(open)), "{")) source.host_entries.push_back(tokens[name].text);
    }
};
}  // namespace

Source translate(const std::string& preprocessed) { return Translator(tokens_of(preprocessed)).run(); }
}  // namespace card
