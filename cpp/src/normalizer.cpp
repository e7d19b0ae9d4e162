#include "normalizer.h"

#include "error.h"

#include <utf8proc.h>

namespace libris {
namespace {

constexpr char32_t kBlank = 0x2581;
constexpr size_t kSmallCluster = 5;  // in bytes
// an expression has 1,000 characters, and Unicode makes at most 18 of one
constexpr size_t kMostCharacters = 18 * 1000;

uint32_t little_endian(const char *bytes) {
    uint32_t value = 0;
    for (int i = 3; i >= 0; --i) value = value << 8 | static_cast<unsigned char>(bytes[i]);
    return value;
}

[[noreturn]] void damaged(const std::string &path, const char *what) {
    throw Error(RIS_ERROR_BUNDLE, path + " is not a tokenizer that can be read (" + what +
                                      "); export the bundle again");
}

}  // namespace

Charsmap::Charsmap(std::string_view rules, const std::string &path) : path_(path) {
    constexpr size_t word = sizeof(uint32_t);
    if (rules.empty()) return;
    const size_t size = rules.size() < word ? 0 : little_endian(rules.data());
    if (size < word || size > rules.size() - word) damaged(path, "its normaliser is cut short");
    for (size_t at = word; at + word <= word + size; at += word) {
        units_.push_back(little_endian(rules.data() + at));
    }
    texts_ = rules.substr(word + size / word * word);
    for (size_t at = 0; at < texts_.size();) {
        utf8proc_int32_t code = -1;
        const utf8proc_ssize_t length =
            utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t *>(texts_.data() + at),
                             static_cast<utf8proc_ssize_t>(texts_.size() - at), &code);
        if (length <= 0) damaged(path, "its normaliser has texts that are not UTF-8");
        at += static_cast<size_t>(length);
    }
}

uint32_t Charsmap::unit(size_t at) const {
    if (at >= units_.size()) damaged(path_, "its normaliser has a rule that leads nowhere");
    return units_[at];
}

const char *Charsmap::found(std::string_view text) const {
    const auto offset = [](uint32_t unit) {
        return static_cast<size_t>(unit >> 10) << ((unit & (1u << 9)) >> 6);
    };
    size_t at = offset(unit(0));
    for (const char c : text) {
        const auto byte = static_cast<unsigned char>(c);
        if (byte == 0) break;
        at ^= byte;
        const uint32_t here = unit(at);
        if ((here & (1u << 31 | 0xffu)) != byte) break;
        at ^= offset(here);
        if ((here >> 8 & 1u) == 0) continue;
        const size_t start = unit(at) & ~(1u << 31);
        const bool splits =
            start < texts_.size() && (static_cast<unsigned char>(texts_[start]) & 0xc0) == 0x80;
        if (start > texts_.size() || splits) damaged(path_, "its normaliser has a rule of no text");
        return texts_.c_str() + start;
    }
    return nullptr;
}

Characters Charsmap::replaced(const Characters &text) const {
    if (units_.empty()) return text;
    Characters out;
    // Adds what the rules make of some characters; false where they make nothing of them.
    const auto add = [&](size_t first, size_t last) {
        std::string bytes;
        for (size_t i = first; i < last; ++i) append_utf8(bytes, text[i].code);
        const char *const made = found(bytes);
        if (made == nullptr) return false;
        const std::string_view made_text(made);
        if (out.size() + made_text.size() > kMostCharacters) {
            damaged(path_, "its normaliser makes texts too long");
        }
        for (const Character &c : characters_of(made_text)) {
            out.push_back({c.code, text[first].begin, text[last - 1].end});
        }
        return true;
    };

    utf8proc_int32_t state = 0;
    for (size_t first = 0, last = 0; first < text.size(); first = last) {
        std::string bytes;
        do {
            append_utf8(bytes, text[last++].code);
        } while (last < text.size() && !utf8proc_grapheme_break_stateful(
                                           static_cast<utf8proc_int32_t>(text[last - 1].code),
                                           static_cast<utf8proc_int32_t>(text[last].code), &state));
        if (bytes.size() <= kSmallCluster && add(first, last)) continue;
        for (size_t i = first; i < last; ++i) {
            if (!add(i, i + 1)) out.push_back(text[i]);
        }
    }
    return out;
}

Normalizer::Normalizer(const NormalizerFile &file, const std::string &path)
    : composes_(file.composes), trims_blanks_(file.trims_blanks), charsmap_(file.charsmap, path) {}

Characters Normalizer::operator()(const Characters &text) const {
    const Characters changed = charsmap_.replaced(composes_ ? composed(text) : text);
    Characters out;
    for (size_t i = 0; i < changed.size(); ++i) {
        if (changed[i].code != ' ') {
            out.push_back(changed[i]);
            continue;
        }
        // the last blank of a run stays, between two words
        const bool is_last = i + 1 == changed.size();
        const bool stays = !out.empty() && !is_last && changed[i + 1].code != ' ';
        if (stays || !trims_blanks_) out.push_back({kBlank, changed[i].begin, changed[i].end});
    }
    if (!out.empty()) out.insert(out.begin(), {kBlank, out.front().begin, out.front().begin});
    return out;
}

}  // namespace libris
