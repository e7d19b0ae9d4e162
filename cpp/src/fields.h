// The fields of JSON objects, with every one that is missing or of the wrong kind.
#pragma once

#include "error.h"

#include <nlohmann/json.hpp>
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace libris {

using nlohmann::json;

constexpr size_t kLongestName = 255;  // bytes of a file's name
constexpr int64_t kLargestCount = int64_t{1} << 62;
constexpr float kSmallestDivisor = 1.2e-38f;  // a smaller one may be rounded to zero

inline bool is_whole(const json &value, int64_t least, int64_t most) {
    if (!value.is_number_integer()) return false;
    if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
        return false;
    }
    return value.get<int64_t>() >= least && value.get<int64_t>() <= most;
}

// A number that a float can hold.
inline bool is_number(const json &value) {
    return value.is_number() && std::abs(value.get<double>()) <= std::numeric_limits<float>::max();
}

inline float to_float(const json &value) { return static_cast<float>(value.get<double>()); }

// Whether all characters can be seen in a message, as Python's str.isprintable() says.
inline bool is_printable(const std::string &text) {
    const auto *bytes = reinterpret_cast<const utf8proc_uint8_t *>(text.data());
    for (size_t at = 0; at < text.size();) {
        utf8proc_int32_t code = -1;
        const auto left = static_cast<utf8proc_ssize_t>(text.size() - at);
        const utf8proc_ssize_t length = utf8proc_iterate(bytes + at, left, &code);
        if (length <= 0) return false;
        const utf8proc_category_t kind = utf8proc_category(code);
        const bool is_other = kind == UTF8PROC_CATEGORY_CN || kind >= UTF8PROC_CATEGORY_ZS;
        if (is_other && code != ' ') return false;
        at += static_cast<size_t>(length);
    }
    return true;
}

// Whether this is a plain relative name, of a file below the bundle on every system.
inline bool is_inside(const std::string &name) {
    if (!is_printable(name) || name.find_first_of("\\:") != std::string::npos) return false;
    for (size_t start = 0, end = 0; end != std::string::npos; start = end + 1) {
        end = name.find('/', start);
        const std::string part = name.substr(start, end == std::string::npos ? end : end - start);
        if (part.empty() || part == "." || part == ".." || part.size() > kLongestName) return false;
    }
    return true;
}

// Whether this may be the name of a stage or a value.
inline bool is_name(const std::string &name) {
    const auto is_small = [](char c) { return c >= 'a' && c <= 'z'; };
    const auto may_follow = [&](char c) {
        return is_small(c) || (c >= '0' && c <= '9') || c == '_';
    };
    return !name.empty() && name.size() <= 64 && is_small(name[0]) &&
           std::all_of(name.begin(), name.end(), may_follow);
}

// A file's text as JSON. Throws Error where it is none, or nested too deep.
json parse_json(const std::string &text, const std::string &path);

// Reads the fields of an object and notes what is missing or of the wrong kind, so that all of it
// is told at once.
class Fields {
public:
    Fields(const json &value, std::string at, std::vector<std::string> &problems)
        : value_(value), at_(std::move(at)), problems_(problems) {
        if (!value.is_object() && &value != &missing()) tell("", "an object", value);
    }

    // The field; `missing` where it is not there, or this is no object, which is noted once.
    const json &get(const char *name) const {
        if (!value_.is_object()) return missing();
        const auto found = value_.find(name);
        if (found != value_.end()) return *found;
        problems_.push_back(at_ + name + " is missing");
        return missing();
    }

    // Whether there is such a field; those that may be absent are asked for first.
    bool has(const char *name) const { return value_.is_object() && value_.contains(name); }

    // An object below; where it is missing or none, its fields are not told of.
    Fields object(const char *name) const { return {get(name), at_ + name + ".", problems_}; }

    // How many things are wrong so far.
    size_t told() const { return problems_.size(); }

    // The objects of a list, or by name.
    std::vector<std::pair<std::string, Fields>> objects(const char *name, bool by_name) const {
        std::vector<std::pair<std::string, Fields>> all;
        const json &value = get(name);
        if (by_name ? !value.is_object() : !value.is_array()) {
            wrong(name, by_name ? "an object" : "a list", value);
            return all;
        }
        for (const auto &[key, item] : value.items()) {
            const std::string at = name + ("." + cut(key));
            if (by_name && !is_name(key)) wrong(at, kName, key);
            all.emplace_back(key, Fields(item, at_ + at + ".", problems_));
        }
        return all;
    }

    std::string text(const char *name) const {
        return ruled(name, [](const std::string &) { return true; }, "text");
    }

    bool boolean(const char *name) const {
        const json &value = get(name);
        if (value.is_boolean()) return value.get<bool>();
        wrong(name, "true or false", value);
        return false;
    }

    int whole(const char *name, int least, int most) const {
        const json &value = get(name);
        if (is_whole(value, least, most)) return value.get<int>();
        wrong(name, "a whole number from " + std::to_string(least) + " to " + std::to_string(most),
              value);
        return least;
    }

    // A whole number of any size from 0 on, near enough.
    double count(const char *name) const {
        const json &value = get(name);
        if (is_whole(value, 0, kLargestCount)) return value.get<double>();
        wrong(name, "a whole number from 0 to " + std::to_string(kLargestCount), value);
        return 0;
    }

    float number(const char *name) const {
        const json &value = get(name);
        if (is_number(value)) return to_float(value);
        wrong(name, "a number", value);
        return 0;
    }

    // One of the given words.
    std::string word(const char *name, std::initializer_list<const char *> words) const {
        const json &value = get(name);
        std::string expected;
        for (const char *word : words) {
            if (value.is_string() && value.get_ref<const std::string &>() == word) return word;
            expected += std::string(expected.empty() ? "'" : " or '") + word + "'";
        }
        wrong(name, expected, value);
        return "";
    }

    // The name of a stage or a value.
    std::string name(const char *field) const { return ruled(field, is_name, kName); }
    std::string name_or_null(const char *field) const {
        return get(field).is_null() ? "" : name(field);
    }

    // The name of a file inside the bundle.
    std::string file(const char *field) const { return ruled(field, is_inside, kFile); }

    // Hashes by the names of files.
    std::map<std::string, std::string> hashes(const char *name) const {
        std::map<std::string, std::string> all;
        const json &value = get(name);
        if (!value.is_object()) wrong(name, "an object", value);
        const json empty = json::object();
        for (const auto &[key, item] : (value.is_object() ? value : empty).items()) {
            if (!is_inside(key)) wrong(name, kFile, key);
            if (item.is_string()) {
                all[key] = item.get<std::string>();
            } else {
                wrong(std::string(name) + "." + key, "text", item);
            }
        }
        return all;
    }

    std::array<float, 3> channels(const char *name, bool divisor) const {
        std::array<float, 3> all{1, 1, 1};
        const json &value = get(name);
        bool good = value.is_array() && value.size() == 3;
        for (size_t i = 0; good && i < 3; ++i) {
            good = is_number(value[i]) && !(divisor && to_float(value[i]) < kSmallestDivisor);
            if (good) all[i] = to_float(value[i]);
        }
        if (good) return all;
        wrong(name, divisor ? "a list of three numbers above zero" : "a list of three numbers",
              value);
        return all;
    }

    void wrong(const std::string &name, const std::string &expected, const json &found) const {
        if (&found != &missing()) tell(name, expected, found);
    }

private:
    // A null that stands for what is not there.
    static const json &missing() {
        static const json null;
        return null;
    }

    static constexpr const char *kName = "a name of small letters, digits and _";
    static constexpr const char *kFile = "the name of a file inside the bundle";

    std::string ruled(const char *name, bool (*holds)(const std::string &),
                      const char *expected) const {
        const json &value = get(name);
        if (value.is_string() && holds(value.get_ref<const std::string &>())) return value;
        wrong(name, value.is_string() ? expected : "text", value);
        return "";
    }

    void tell(const std::string &name, const std::string &expected, const json &found) const {
        std::string at = at_ + name;
        if (at.empty()) at = "the manifest";
        if (at.back() == '.') at.pop_back();
        const std::string shown = found.dump(-1, ' ', true, json::error_handler_t::replace);
        problems_.push_back(at + " should be " + expected + ", found " + in_quotes(shown, 40));
    }

    const json &value_;
    std::string at_;
    std::vector<std::string> &problems_;
};

}  // namespace libris
