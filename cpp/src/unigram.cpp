// SentencePiece's unigram model: of all ways to cut a text the most probable one.
#include "error.h"
#include "normalizer.h"
#include "subwords.h"

#include <algorithm>
#include <limits>

namespace libris {
namespace {

constexpr double kUnknownPenalty = 10;  // SentencePiece's, below the least probable piece

class Unigram : public Subwords {
public:
    Unigram(const UnigramFile &file, const std::string &path)
        : normalise_(file.normalizer, path), unknown_(file.unknown) {
        double least = std::numeric_limits<double>::max();
        for (size_t id = 0; id < file.pieces.size(); ++id) {
            const auto &[text, score] = file.pieces[id];
            pieces_.push_back({text, score, static_cast<int32_t>(id)});
            least = std::min(least, score);
        }
        unknown_score_ = least - kUnknownPenalty;
        // of two that are the same the later one counts
        const auto order = [](const Piece &a, const Piece &b) {
            return a.text != b.text ? a.text < b.text : a.id > b.id;
        };
        const auto same = [](const Piece &a, const Piece &b) { return a.text == b.text; };
        std::sort(pieces_.begin(), pieces_.end(), order);
        pieces_.erase(std::unique(pieces_.begin(), pieces_.end(), same), pieces_.end());
    }

    void add(const Characters &text, std::vector<Token> &tokens) const override;
    int32_t unknown() const override { return unknown_; }

private:
    struct Piece {
        std::string text;
        double score;
        int32_t id;
    };
    // The best way to cut what ends at a character: its last piece, from `start` on.
    struct Cut {
        double score = 0;
        size_t start = 0;
        int32_t id = 0;
        bool is_reached = false;
    };

    std::vector<Cut> best_cuts(const std::string &bytes, const std::vector<size_t> &starts) const;
    int32_t id_of(const std::string &text) const;

    Normalizer normalise_;
    std::vector<Piece> pieces_;  // sorted by their bytes
    int32_t unknown_;
    double unknown_score_;
};

// starts: of each character in `bytes`, and the end. Returns a cut for each of them.
std::vector<Unigram::Cut> Unigram::best_cuts(const std::string &bytes,
                                             const std::vector<size_t> &starts) const {
    std::vector<Cut> cuts(starts.size());
    const auto reach = [&](size_t end, size_t start, int32_t id, double score) {
        const double sum = score + cuts[start].score;
        if (!cuts[end].is_reached || sum > cuts[end].score) cuts[end] = {sum, start, id, true};
    };
    for (size_t start = 0; start + 1 < starts.size(); ++start) {
        bool is_known = false;  // the character alone is a piece
        // those pieces that begin with what was read so far
        auto first = pieces_.begin(), last = pieces_.end();
        size_t depth = 0;
        for (size_t end = start + 1; end < starts.size() && first != last; ++end) {
            for (; depth < starts[end] - starts[start]; ++depth) {
                const auto byte = static_cast<unsigned char>(bytes[starts[start] + depth]);
                // -1 where the piece has ended
                const auto at = [depth](const Piece &piece) {
                    return depth < piece.text.size() ? static_cast<unsigned char>(piece.text[depth])
                                                     : -1;
                };
                first = std::lower_bound(first, last, byte, [&](const Piece &piece, int value) {
                    return at(piece) < value;
                });
                last = std::upper_bound(first, last, byte, [&](int value, const Piece &piece) {
                    return value < at(piece);
                });
            }
            if (first == last || first->text.size() != depth) continue;
            reach(end, start, first->id, first->score);
            is_known = is_known || end == start + 1;
        }
        if (!is_known) reach(start + 1, start, unknown_, unknown_score_);
    }
    return cuts;
}

int32_t Unigram::id_of(const std::string &text) const {
    const auto before = [](const Piece &piece, const std::string &key) { return piece.text < key; };
    const auto found = std::lower_bound(pieces_.begin(), pieces_.end(), text, before);
    return found != pieces_.end() && found->text == text ? found->id : unknown_;
}

void Unigram::add(const Characters &text, std::vector<Token> &tokens) const {
    const Characters characters = normalise_(text);
    std::string bytes;
    std::vector<size_t> starts;
    for (const Character &c : characters) {
        starts.push_back(bytes.size());
        append_utf8(bytes, c.code);
    }
    starts.push_back(bytes.size());

    const std::vector<Cut> cuts = best_cuts(bytes, starts);
    std::vector<Token> found;  // the last one first
    for (size_t end = characters.size(); end > 0;) {
        size_t start = cuts[end].start;
        // neighbours that are unknown are one
        while (cuts[end].id == unknown_ && start > 0 && cuts[start].id == unknown_) {
            start = cuts[start].start;
        }
        const std::string piece = bytes.substr(starts[start], starts[end] - starts[start]);
        found.push_back({id_of(piece), characters[start].begin, characters[end - 1].end});
        end = start;
    }
    tokens.insert(tokens.end(), found.rbegin(), found.rend());
}

}  // namespace

std::unique_ptr<Subwords> unigram(const UnigramFile &file, const std::string &path) {
    return std::make_unique<Unigram>(file, path);
}

}  // namespace libris
