#include "json.h"

#include "checks.h"
#include "error.h"

#include <nlohmann/json.hpp>
#include <utf8proc.h>

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>

namespace libris {
namespace {

using nlohmann::json;

constexpr int kLargestSide = 1 << 14;         // of anything that is an image or a map
constexpr size_t kLongestName = 255;          // bytes of a file's name
constexpr float kSmallestDivisor = 1.2e-38f;  // a smaller one may be rounded to zero
constexpr int kDeepest = 64;  // nesting; a copy of a deeper value could overflow the stack

bool is_whole(const json &value, int64_t least, int64_t most) {
    if (!value.is_number_integer()) return false;
    if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
        return false;
    }
    return value.get<int64_t>() >= least && value.get<int64_t>() <= most;
}

// A number that a float can hold.
bool is_number(const json &value) {
    return value.is_number() && std::abs(value.get<double>()) <= std::numeric_limits<float>::max();
}

float to_float(const json &value) { return static_cast<float>(value.get<double>()); }

// Whether all characters can be seen in a message, as Python's str.isprintable() says.
bool is_printable(const std::string &text) {
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
bool is_inside(const std::string &name) {
    if (!is_printable(name) || name.find_first_of("\\:") != std::string::npos) return false;
    for (size_t start = 0, end = 0; end != std::string::npos; start = end + 1) {
        end = name.find('/', start);
        const std::string part = name.substr(start, end == std::string::npos ? end : end - start);
        if (part.empty() || part == "." || part == ".." || part.size() > kLongestName) return false;
    }
    return true;
}

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

    // An object below; where it is missing or none, its fields are not told of.
    Fields object(const char *name) const { return {get(name), at_ + name + ".", problems_}; }

    std::string text(const char *name) const {
        const json &value = get(name);
        if (value.is_string()) return value.get<std::string>();
        wrong(name, "text", value);
        return "";
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

    // The name of a file inside the bundle.
    std::string file(const char *name) const {
        const json &value = get(name);
        if (!value.is_string()) {
            wrong(name, "text", value);
            return "";
        }
        check_file(name, value);
        return value.get<std::string>();
    }

    // Hashes by the names of files.
    std::map<std::string, std::string> hashes(const char *name) const {
        std::map<std::string, std::string> all;
        const json &value = get(name);
        if (!value.is_object()) wrong(name, "an object", value);
        const json empty = json::object();
        for (const auto &[key, item] : (value.is_object() ? value : empty).items()) {
            check_file(name, key);
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

    void check_file(const char *name, const std::string &found) const {
        if (!is_inside(found)) wrong(name, "the name of a file inside the bundle", found);
    }

    void tell(const std::string &name, const std::string &expected, const json &found) const {
        std::string at = at_ + name;
        if (at.empty()) at = "the manifest";
        if (at.back() == '.') at.pop_back();
        const std::string shown = found.dump(-1, ' ', true, json::error_handler_t::replace);
        problems_.push_back(at + " should be " + expected + ", found " + quoted(shown, 40));
    }

    const json &value_;
    std::string at_;
    std::vector<std::string> &problems_;
};

std::vector<TensorSpec> tensors(const Fields &graph, const char *name) {
    std::vector<TensorSpec> all;
    const json &list = graph.get(name);
    bool good = list.is_array();
    const json none = json::array();
    for (const json &item : good ? list : none) {
        good = good && item.is_object() && item.contains("name") && item["name"].is_string() &&
               item.contains("dtype") && (item["dtype"] == "float32" || item["dtype"] == "int32") &&
               item.contains("shape") && item["shape"].is_array();
        if (!good) break;
        TensorSpec spec{item["name"].get<std::string>(), item["dtype"] == "int32", {}};
        for (const json &size : item["shape"]) {
            if (size == "images") {
                spec.shape.push_back(TensorSpec::images);
            } else if (size == "expressions") {
                spec.shape.push_back(TensorSpec::expressions);
            } else if (is_whole(size, 1, 1 << 24)) {
                spec.shape.push_back(size.get<int>());
            } else {
                good = false;
            }
        }
        all.push_back(std::move(spec));
    }
    if (!good) {
        graph.wrong(name, "a list of tensors with name, dtype (float32 or int32) and shape", list);
    }
    return all;
}

Graph graph(const Fields &fields) {
    Graph graph;
    graph.file = fields.file("file");
    if (!graph.file.empty() && std::filesystem::path(graph.file).extension() != ".onnx") {
        fields.wrong("file", "a file *.onnx", graph.file);
    }
    graph.precision = fields.text("precision");
    const json &sampling = fields.get("sampling");
    graph.sampling = sampling.is_null() ? "" : fields.word("sampling", {"native", "gather"});
    graph.sha256 = fields.hashes("sha256");
    graph.inputs = tensors(fields, "inputs");
    graph.outputs = tensors(fields, "outputs");
    return graph;
}

Square square(const Fields &fields, const char *interpolation) {
    fields.word("interpolation", {interpolation});
    return {fields.whole("size", 1, kLargestSide), fields.channels("mean", false),
            fields.channels("std", true)};
}

Manifest manifest(const Fields &fields, std::vector<std::string> &problems) {
    Manifest manifest;
    const Fields source = fields.object("source");
    manifest.source_kind = source.text("kind");
    manifest.trained = source.boolean("trained");
    const json &model = fields.get("model");
    const auto preset = model.is_object() ? model.find("preset") : model.end();
    if (model.is_object() && preset != model.end() && preset->is_string()) {
        manifest.preset = preset->get<std::string>();
    }
    manifest.precision = fields.text("precision");

    const Fields graphs = fields.object("graphs");
    for (size_t stage = 0; stage < kStages; ++stage) {
        manifest.graphs[stage] = graph(graphs.object(kStageNames[stage]));
    }

    const Fields preprocess = fields.object("preprocess");
    manifest.preprocess = {square(preprocess.object("sam"), "pillow-bilinear-uint8"),
                           square(preprocess.object("clip"), "bicubic")};

    const Fields text = fields.object("text");
    manifest.tokenizer = text.file("tokenizer");
    manifest.max_tokens = text.whole("max_tokens", 2, 4096);

    const Fields dense = fields.object("dense_prompt");
    manifest.dense_grid = dense.whole("grid", 1, kLargestSide);
    manifest.dense_target = dense.whole("target", 1, kLargestSide);
    manifest.dense_interpolation = dense.word("interpolation", {"bilinear", "bicubic"}) == "bicubic"
                                       ? Interpolation::bicubic
                                       : Interpolation::bilinear;

    const Fields postprocess = fields.object("postprocess");
    postprocess.word("interpolation", {"bilinear"});
    manifest.threshold = postprocess.number("threshold");
    manifest.no_target = fields.boolean("no_target");

    const json &categories = fields.get("categories");
    if (!categories.is_null()) {
        const Fields table(categories, "categories.", problems);
        manifest.categories = {table.file("names"), table.file("features")};
    }

    manifest.golden = fields.file("golden");
    manifest.files = fields.hashes("files");
    return manifest;
}

json parse(const std::string &text, const std::string &path) {
    try {
        return json::parse(text, [&](int depth, json::parse_event_t, json &) {
            if (depth <= kDeepest) return true;
            throw Error(RIS_ERROR_BUNDLE,
                        path + " is nested too deep to be a bundle's; export the bundle again");
        });
    } catch (const json::exception &error) {
        throw Error(RIS_ERROR_BUNDLE,
                    path + " is not JSON (" + cut(error.what()) + "); export the bundle again");
    }
}

int token_id(const json &value) {
    if (!is_whole(value, 0, std::numeric_limits<int>::max())) {
        throw json::other_error::create(501, "a token id is not a whole number", &value);
    }
    return value.get<int>();
}

// The ids of a template's special tokens before and after the expression.
void read_template(const json &processor, TokenizerFile &file) {
    bool seen = false;
    for (const json &piece : processor.at("single")) {
        if (piece.contains("Sequence")) {
            seen = true;
            continue;
        }
        const std::string name = piece.at("SpecialToken").at("id").get<std::string>();
        for (const json &id : processor.at("special_tokens").at(name).at("ids")) {
            (seen ? file.after : file.before).push_back(token_id(id));
        }
    }
}

}  // namespace

Manifest parse_manifest(const std::string &text, const std::string &path) {
    const json data = parse(text, path);
    const auto version = data.is_object() ? data.find("format_version") : data.end();
    if (data.is_object() && version != data.end() && version->is_number_integer() &&
        *version > kFormatVersion) {
        throw Error(RIS_ERROR_BUNDLE,
                    path + " has format version " + version->dump() + ", this libris reads up to " +
                        std::to_string(kFormatVersion) +
                        "; upgrade libris, or export the bundle again with this version");
    }

    std::vector<std::string> problems;
    const Fields fields(data, "", problems);
    fields.whole("format_version", 1, kFormatVersion);
    Manifest found = manifest(fields, problems);
    if (problems.empty()) problems = problems_of(found);
    if (problems.empty()) return found;
    throw Error(RIS_ERROR_BUNDLE,
                path + " is damaged: " + joined(problems) + "; export the bundle again");
}

std::vector<std::string> parse_category_names(const std::string &text, const std::string &path) {
    const json data = parse(text, path);
    std::vector<std::string> names;
    try {
        for (const json &row : data) names.push_back(row.at("name").get<std::string>());
    } catch (const json::exception &) {
        throw Error(RIS_ERROR_BUNDLE, path + " is not a list of categories that can be read; "
                                             "export the bundle again");
    }
    return names;
}

TokenizerFile parse_tokenizer(const std::string &text, const std::string &path) {
    const json data = parse(text, path);
    TokenizerFile file;
    try {
        const json &normalizer = data.at("normalizer"), &model = data.at("model");
        const auto kind = [&](const json &part, const char *expected) {
            const std::string found = part.at("type").get<std::string>();
            if (found == expected) return;
            const std::string what = path + " has " + quoted(found) + " where libris reads ";
            throw Error(RIS_ERROR_BUNDLE,
                        what + expected + " alone; export the bundle again with this version");
        };
        kind(normalizer, "BertNormalizer");
        kind(data.at("pre_tokenizer"), "BertPreTokenizer");
        kind(model, "WordPiece");
        kind(data.at("post_processor"), "TemplateProcessing");

        file.clean_text = normalizer.at("clean_text").get<bool>();
        file.handle_chinese_chars = normalizer.at("handle_chinese_chars").get<bool>();
        file.lowercase = normalizer.at("lowercase").get<bool>();
        const json &strip = normalizer.at("strip_accents");
        file.strip_accents = strip.is_null() ? file.lowercase : strip.get<bool>();

        file.unknown = model.at("unk_token").get<std::string>();
        file.prefix = model.at("continuing_subword_prefix").get<std::string>();
        file.longest_word = static_cast<size_t>(token_id(model.at("max_input_chars_per_word")));
        for (const auto &[token, id] : model.at("vocab").items()) {
            file.vocabulary.emplace_back(token, token_id(id));
        }

        for (const json &token : data.at("added_tokens")) {
            const auto is = [&](const char *option) { return token.at(option).get<bool>(); };
            const bool plain =
                !is("normalized") && !is("single_word") && !is("lstrip") && !is("rstrip");
            const json &content = token.at("content");
            if (!plain) {
                throw Error(RIS_ERROR_BUNDLE, path + " has the added token " + content.dump() +
                                                  " with options that libris does not know; "
                                                  "export the bundle again with this version");
            }
            file.special.emplace_back(content.get<std::string>(), token_id(token.at("id")));
        }
        read_template(data.at("post_processor"), file);
    } catch (const json::exception &error) {
        throw Error(RIS_ERROR_BUNDLE, path + " is not a tokenizer that can be read (" +
                                          cut(error.what()) + "); export the bundle again");
    }
    return file;
}

std::string info_json(const Bundle &bundle, const Info &info) {
    const Manifest &manifest = bundle.manifest;
    json graphs = json::object();
    for (size_t stage = 0; stage < kStages; ++stage) {
        graphs[kStageNames[stage]] = {{"precision", manifest.graphs[stage].precision},
                                      {"provider", info.providers[stage]}};
        if (!info.contexts[stage].empty()) {
            graphs[kStageNames[stage]]["ep_context"] = info.contexts[stage];
        }
    }
    const json all = {{"libris", ris_version()},
                      {"onnxruntime", info.onnxruntime},
                      {"bundle", bundle.path},
                      {"format_version", kFormatVersion},
                      {"source", manifest.source_kind},
                      {"trained", manifest.trained},
                      {"preset", manifest.preset},
                      {"precision", manifest.precision},
                      {"graphs", graphs},
                      {"threads", info.threads},
                      {"max_tokens", manifest.max_tokens},
                      {"mask_logits", {info.mask_size, info.mask_size}},
                      {"no_target", manifest.no_target},
                      {"categories", info.categories}};
    return all.dump(2, ' ', false, json::error_handler_t::replace);
}

}  // namespace libris
