// SentencePiece's BPE with byte fallback: of all neighbours the best pair becomes one piece, until
// no two make one.
#include "error.h"
#include "normalizer.h"
#include "subwords.h"

#include <array>
#include <functional>
#include <queue>
#include <tuple>
#include <unordered_map>

namespace libris {
namespace {

class BytePairs : public Subwords {
public:
    BytePairs(const BpeFile &file, const std::string &path);
    void add(const Characters &text, std::vector<Token> &tokens) const override;
    int32_t unknown() const override { return unknown_; }

private:
    struct Merge {
        size_t rank;
        int32_t id;
    };
    // A piece of a text, with its neighbours; `is_gone` where it was merged with the one before.
    struct Symbol {
        Token token;
        size_t previous, next;
        bool is_gone;
    };

    static uint64_t key(int32_t left, int32_t right) {
        return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
    }
    const Merge *merge_of(const Symbol &left, const Symbol &right) const {
        const auto found = merges_.find(key(left.token.id, right.token.id));
        return found == merges_.end() ? nullptr : &found->second;
    }
    std::vector<Symbol> symbols_of(const Characters &text) const;

    Normalizer normalise_;
    std::unordered_map<std::string, int32_t> vocabulary_;
    std::unordered_map<uint64_t, Merge> merges_;
    std::array<int32_t, 256> bytes_;
    int32_t unknown_ = -1;
};

constexpr size_t kNone = static_cast<size_t>(-1);

BytePairs::BytePairs(const BpeFile &file, const std::string &path)
    : normalise_(file.normalizer, path),
      vocabulary_(file.vocabulary.begin(), file.vocabulary.end()) {
    const auto id_of = [&](const std::string &token) {
        const auto found = vocabulary_.find(token);
        if (found != vocabulary_.end()) return found->second;
        throw Error(RIS_ERROR_BUNDLE,
                    path + " has no token " + in_quotes(token) + "; export the bundle again");
    };
    const char *const digits = "0123456789ABCDEF";
    for (size_t i = 0; i < bytes_.size(); ++i) {
        bytes_[i] = id_of(std::string("<0x") + digits[i / 16] + digits[i % 16] + '>');
    }
    unknown_ = id_of(file.unknown);
    merges_.reserve(file.merges.size());
    for (size_t rank = 0; rank < file.merges.size(); ++rank) {
        const auto &[left, right] = file.merges[rank];
        // of two merges of the same pieces the later one counts
        merges_[key(id_of(left), id_of(right))] = {rank, id_of(left + right)};
    }
}

std::vector<BytePairs::Symbol> BytePairs::symbols_of(const Characters &text) const {
    std::vector<Symbol> symbols;
    const auto push = [&](int32_t id, const Character &c) {
        const size_t at = symbols.size();
        symbols.push_back({{id, c.begin, c.end}, at == 0 ? kNone : at - 1, at + 1, false});
    };
    for (const Character &c : text) {
        std::string bytes;
        append_utf8(bytes, c.code);
        const auto known = vocabulary_.find(bytes);
        if (known != vocabulary_.end()) {
            push(known->second, c);
            continue;
        }
        for (const char byte : bytes) push(bytes_[static_cast<unsigned char>(byte)], c);
    }
    if (!symbols.empty()) symbols.back().next = kNone;
    return symbols;
}

void BytePairs::add(const Characters &text, std::vector<Token> &tokens) const {
    std::vector<Symbol> symbols = symbols_of(normalise_(text));
    // rank, place of the left one, product: the best rank first, and of those the leftmost
    using Candidate = std::tuple<size_t, size_t, int32_t>;
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
    const auto consider = [&](size_t left) {
        if (left == kNone || symbols[left].next == kNone) return;
        const Merge *const merge = merge_of(symbols[left], symbols[symbols[left].next]);
        if (merge != nullptr) queue.emplace(merge->rank, left, merge->id);
    };
    for (size_t i = 0; i < symbols.size(); ++i) consider(i);

    while (!queue.empty()) {
        const size_t place = std::get<1>(queue.top());
        const int32_t product = std::get<2>(queue.top());
        queue.pop();
        Symbol &left = symbols[place];
        if (left.is_gone || left.next == kNone) continue;
        Symbol &right = symbols[left.next];
        const Merge *const merge = merge_of(left, right);
        if (merge == nullptr || merge->id != product) continue;  // it was another pair then

        left.token = {product, left.token.begin, right.token.end};
        right.is_gone = true;
        left.next = right.next;
        if (right.next != kNone) symbols[right.next].previous = place;
        consider(left.previous);
        consider(place);
    }
    for (const Symbol &symbol : symbols) {
        if (!symbol.is_gone) tokens.push_back(symbol.token);
    }
}

}  // namespace

std::unique_ptr<Subwords> byte_pairs(const BpeFile &file, const std::string &path) {
    return std::make_unique<BytePairs>(file, path);
}

}  // namespace libris
