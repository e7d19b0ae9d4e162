#include "tokenizer.h"

#include "error.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace libris {
namespace {

constexpr size_t kMaxCharacters = 1000;  // the model itself reads about 25 words

// All tokens of the model with their ids.
template <class Take>
void for_each_token(const TokenizerFile &file, const Take &take) {
    if (const auto *const pieces = std::get_if<UnigramFile>(&file.model)) {
        for (size_t id = 0; id < pieces->pieces.size(); ++id) {
            take(pieces->pieces[id].first, static_cast<int32_t>(id));
        }
    } else {
        const auto *const words = std::get_if<WordPieceFile>(&file.model);
        for (const auto &[token, id] :
             words != nullptr ? words->vocabulary : std::get<BpeFile>(file.model).vocabulary) {
            take(token, id);
        }
    }
    for (const AddedToken &token : file.added) take(token.content, token.id);
}

struct MakeSubwords {
    const std::string &path;
    auto operator()(const WordPieceFile &file) const { return word_pieces(file, path); }
    auto operator()(const UnigramFile &file) const { return unigram(file, path); }
    auto operator()(const BpeFile &file) const { return byte_pairs(file, path); }
};

std::string asked(std::string_view expression, const Form &form) {
    const std::string words = stripped(expression);
    return form.before + (form.lower ? lower_cased(words) : words) + form.behind;
}

}  // namespace

Tokenizer::Tokenizer(const TokenizerFile &file, const std::string &path, int max_tokens,
                     int32_t pad_id, int32_t end_id)
    : subwords_(std::visit(MakeSubwords{path}, file.model)),
      added_(file.added),
      largest_id_(0),
      pad_id_(pad_id),
      end_id_(end_id),
      max_tokens_(max_tokens),
      before_(file.before),
      after_(file.after) {
    for_each_token(file, [&](const std::string &token, int32_t id) {
        largest_id_ = std::max(largest_id_, id);
        if (id == pad_id) padding_ = token;
    });
    // BERT reads a [MASK] in an expression, say
    if (std::holds_alternative<WordPieceFile>(file.model)) return;
    for (const AddedToken &token : file.added) {
        if (token.is_special) own_tokens_.emplace(token.id, token.content);
    }
}

Tokens Tokenizer::operator()(std::string_view expression, const Form *form) const {
    const Characters text = characters_of(expression);
    const bool blank =
        std::all_of(text.begin(), text.end(), [](const Character &c) { return is_blank(c.code); });
    if (blank) {
        throw Error(RIS_ERROR_EXPRESSION,
                    "the expression is empty; say what to find, such as \"left man\"");
    }
    if (text.size() > kMaxCharacters) {
        const std::string size = std::to_string(text.size()), most = std::to_string(kMaxCharacters);
        throw Error(RIS_ERROR_EXPRESSION, "the expression has " + size + " characters, at most " +
                                              most + " are accepted (the model reads the first " +
                                              std::to_string(max_tokens_) + " tokens)");
    }

    const std::string question = form == nullptr ? "" : asked(expression, *form);
    std::vector<Token> tokens = form == nullptr ? tokens_of(expression, text)
                                                : tokens_of(question, characters_of(question));
    refuse_own_tokens(expression, tokens);
    if (tokens.empty()) {
        throw Error(RIS_ERROR_EXPRESSION,
                    "the expression " + in_quotes(std::string(expression)) + " has no words in it");
    }
    const auto around = [](int32_t id) { return Token{id, 0, 0}; };
    std::transform(before_.begin(), before_.end(), std::inserter(tokens, tokens.begin()), around);
    std::transform(after_.begin(), after_.end(), std::back_inserter(tokens), around);

    if (form != nullptr && tokens.size() > static_cast<size_t>(max_tokens_)) {
        throw Error(RIS_ERROR_EXPRESSION,
                    "the expression " + in_quotes(std::string(expression)) +
                        " is too long: its question has " + std::to_string(tokens.size()) +
                        " tokens, and the model reads " + std::to_string(max_tokens_) +
                        "; say it in fewer words");
    }
    if (form == nullptr) return cut(expression, std::move(tokens));
    Tokens result;  // a form's own words are known, and its end is never cut off
    for (const Token &token : tokens) result.ids.push_back(token.id);
    return result;
}

// The ids that the model reads, and what its user should know about the others.
Tokens Tokenizer::cut(std::string_view expression, std::vector<Token> tokens) const {
    Tokens result;
    const size_t most = static_cast<size_t>(max_tokens_);
    const bool is_cut = tokens.size() > most, is_ended = is_cut && end_id_ >= 0;
    if (is_cut) {
        const size_t read = most - (is_ended ? 1 : 0);
        const std::string rest = stripped(expression.substr(tokens[read - 1].end));
        const std::string lost =
            rest.empty() ? "the token behind the text" : in_quotes(rest, 4 * kMaxCharacters);
        result.notes.push_back("the model reads " + std::to_string(max_tokens_) +
                               " tokens: it did not see " + lost);
    }

    std::string unknown;
    for (const Token &token : tokens) {
        if (token.id != subwords_->unknown()) continue;
        unknown += (unknown.empty() ? "" : ", ") +
                   std::string(expression.substr(token.begin, token.end - token.begin));
    }
    if (!unknown.empty()) result.notes.push_back("words the model does not know: " + unknown);

    tokens.resize(std::min(tokens.size(), most), Token{0, 0, 0});
    if (is_ended) tokens.back().id = end_id_;
    bool padding = false;
    for (const Token &token : tokens) {
        result.ids.push_back(token.id);
        padding = padding || token.id == pad_id_;
    }
    if (padding) result.notes.push_back(padding_ + " is padding to the model: it does not read it");
    return result;
}

// The longest added token that a text begins with; null where it begins with none.
const AddedToken *Tokenizer::added_at(std::string_view rest) const {
    const AddedToken *found = nullptr;
    for (const AddedToken &token : added_) {
        const bool here = rest.compare(0, token.content.size(), token.content) == 0;
        if (here && (found == nullptr || token.content.size() > found->content.size())) {
            found = &token;
        }
    }
    return found;
}

// Added tokens are found in the text as it is. White space between two belongs to the first that
// takes it.
std::vector<Tokenizer::Place> Tokenizer::places_of_added(std::string_view expression,
                                                         const Characters &text) const {
    std::vector<Place> places;
    size_t taken = 0;
    for (size_t i = 0; i < text.size();) {
        const AddedToken *const token = added_at(expression.substr(text[i].begin));
        if (token == nullptr) {
            ++i;
            continue;
        }
        const size_t last_byte = text[i].begin + token->content.size();
        size_t begin = i;
        while (i < text.size() && text[i].begin < last_byte) ++i;
        size_t end = i;
        while (token->strips_left && begin > taken && is_whitespace(text[begin - 1].code)) --begin;
        while (token->strips_right && end < text.size() && is_whitespace(text[end].code)) ++end;
        places.push_back({token, begin, end});
        i = taken = end;
    }
    return places;
}

// Without those around an expression.
std::vector<Token> Tokenizer::tokens_of(std::string_view expression, const Characters &text) const {
    std::vector<Token> tokens;
    const auto add_text = [&](size_t begin, size_t end) {
        const auto at = [&](size_t i) { return text.begin() + static_cast<std::ptrdiff_t>(i); };
        if (begin < end) subwords_->add(Characters(at(begin), at(end)), tokens);
    };
    size_t start = 0;
    for (const Place &place : places_of_added(expression, text)) {
        add_text(start, place.begin);
        tokens.push_back({place.token->id, text[place.begin].begin, text[place.end - 1].end});
        start = place.end;
    }
    add_text(start, text.size());
    return tokens;
}

// An expression with, say, </s> in it would end there for the model. A normaliser may make one of
// other characters, which the tokens show.
void Tokenizer::refuse_own_tokens(std::string_view expression,
                                  const std::vector<Token> &tokens) const {
    const std::string *found = nullptr;
    for (const auto &[id, content] : own_tokens_) {
        if (expression.find(content) != std::string_view::npos) found = &content;
        if (found != nullptr) break;
    }
    for (const Token &token : tokens) {
        const auto own = own_tokens_.find(token.id);
        if (found != nullptr || token.id == subwords_->unknown()) continue;
        if (own != own_tokens_.end()) found = &own->second;
    }
    if (found == nullptr) return;
    throw Error(RIS_ERROR_EXPRESSION, "the expression " + in_quotes(std::string(expression)) +
                                          " has " + in_quotes(*found) +
                                          " in it, a token of the model's own; leave it out");
}

}  // namespace libris
