#include "json.h"

#include "dfam/format_1.h"
#include "fields.h"
#include "wiring.h"

#include <filesystem>
#include <limits>

namespace libris {
namespace {

constexpr int kLargestSide = 1 << 14;  // of anything that is an image or a map
constexpr int kLargestAxis = 1 << 24;
constexpr size_t kMostAxes = 7;  // of random numbers
constexpr int kMostTokens = 4096;
constexpr int kDeepest = 64;  // nesting; a copy of a deeper value could overflow the stack

// Adds the sizes of a shape to `sizes`; false where one of them is none.
bool read_shape(const json &shape, std::vector<int> &sizes) {
    if (!shape.is_array()) return false;
    for (const json &size : shape) {
        if (size == "images") sizes.push_back(TensorSpec::images);
        else if (size == "expressions") sizes.push_back(TensorSpec::expressions);
        else if (size == "tokens") sizes.push_back(TensorSpec::tokens);
        else if (is_whole(size, 1, kLargestAxis)) sizes.push_back(size.get<int>());
        else return false;
    }
    return true;
}

std::vector<TensorSpec> tensors(const Fields &stage, const char *list, bool are_inputs) {
    const size_t before = stage.told();
    bool good = true, named = true;
    std::vector<TensorSpec> all;
    for (const auto &[at, fields] : stage.objects(list, false)) {
        TensorSpec spec{fields.text("name"), "", Dtype::float32, {}};
        spec.value = are_inputs ? fields.name("value") : spec.name;
        named = named && is_name(spec.value);
        const std::string dtype = fields.text("dtype");
        if (dtype == "float16") spec.dtype = Dtype::float16;
        if (dtype == "int32") spec.dtype = Dtype::int32;
        good = read_shape(fields.get("shape"), spec.shape) && good &&
               (spec.dtype != Dtype::float32 || dtype == "float32");
        all.push_back(std::move(spec));
    }
    if (stage.told() != before) return all;
    if (!good) {
        stage.wrong(list,
                    "a list of tensors of float32, float16 or int32, whose axes are whole numbers "
                    "from 1 on, images, expressions or tokens",
                    stage.get(list));
    } else if (!named) {
        stage.wrong(list, "a list of tensors with names of small letters, digits and _",
                    stage.get(list));
    }
    return all;
}

Stage stage(const Fields &fields) {
    Stage stage;
    stage.name = fields.name("name");
    stage.file = fields.file("file");
    if (!stage.file.empty() && std::filesystem::path(stage.file).extension() != ".onnx") {
        fields.wrong("file", "a file *.onnx", stage.file);
    }
    stage.precision = fields.word("precision", {"fp32", "bf16", "fp16"});
    const json &sampling = fields.get("sampling");
    stage.sampling = sampling.is_null() ? "" : fields.word("sampling", {"native", "gather"});
    stage.sha256 = fields.hashes("sha256");
    stage.inputs = tensors(fields, "inputs", true);
    stage.outputs = tensors(fields, "outputs", false);
    if (fields.has("weights") && !fields.get("weights").is_null()) {
        const Fields weights = fields.object("weights");
        stage.weights = weights.word("format", {"int8", "int4"});
        stage.narrow_weights = weights.count("elements");
    }
    if (fields.has("operations") && !fields.get("operations").is_null()) {
        const Fields operations = fields.object("operations");
        stage.operations =
            operations.count("fixed") + operations.count("image") + operations.count("expression");
    }
    return stage;
}

Interpolation interpolation(const Fields &fields, const char *name) {
    return fields.word(name, {"bilinear", "bicubic"}) == "bicubic" ? Interpolation::bicubic
                                                                   : Interpolation::bilinear;
}

HostImage image(const std::string &name, const Fields &fields) {
    HostImage image{name,
                    fields.text("of"),
                    fields.word("fit", {"square", "letterbox", "crop"}),
                    fields.whole("size", 1, kLargestSide),
                    interpolation(fields, "filter"),
                    fields.boolean("antialias"),
                    1,
                    fields.channels("mean", false),
                    fields.channels("std", true)};
    const json &levels = fields.get("levels");
    if (is_whole(levels, 255, 255)) image.levels = 255;
    else if (!is_whole(levels, 1, 1)) fields.wrong("levels", "1 or 255", levels);
    return image;
}

Drawn drawn(const std::string &name, const Fields &fields) {
    Drawn drawn{name, {}, 0};
    fields.word("distribution", {"logistic"});
    const json &shape = fields.get("shape");
    int64_t count = 1;
    bool good = shape.is_array() && !shape.empty() && shape.size() <= kMostAxes;
    for (size_t i = 0; good && i < shape.size(); ++i) {
        good = is_whole(shape[i], 1, kLargestAxis);
        if (!good) break;
        drawn.shape.push_back(shape[i].get<int>());
        count *= drawn.shape.back();
        good = count <= kLargestAxis;
    }
    if (!good) {
        fields.wrong("shape",
                     "a list of one to seven whole numbers from 1 on, whose product is at most "
                     "16777216",
                     shape);
    }
    drawn.seed = fields.whole("seed", 0, std::numeric_limits<int>::max());
    return drawn;
}

std::vector<int> lengths(const Fields &text) {
    std::vector<int> all;
    const json &found = text.get("lengths");
    if (!found.is_array()) {
        text.wrong("lengths", "a list", found);
        return all;
    }
    bool are_whole = true;
    for (size_t i = 0; i < found.size(); ++i) {
        if (found[i].is_number_integer()) continue;
        text.wrong("lengths." + std::to_string(i), "a whole number", found[i]);
        are_whole = false;
    }
    if (!are_whole) return all;
    for (const json &length : found) {
        if (!is_whole(length, all.empty() ? 2 : all.back() + 1, kMostTokens)) {
            text.wrong("lengths",
                       "an ascending list of whole numbers from 2 to " +
                           std::to_string(kMostTokens),
                       found);
            break;
        }
        all.push_back(length.get<int>());
    }
    return all;
}

Host host(const Fields &fields, std::vector<std::string> &problems) {
    Host host;
    for (const auto &[name, entry] : fields.objects("images", true)) {
        host.images.push_back(image(name, entry));
    }
    const Fields text = fields.object("text");
    host.text = {text.file("tokenizer"),
                 text.whole("max_tokens", 2, kMostTokens),
                 text.whole("pad_id", 0, std::numeric_limits<int>::max()),
                 text.name("ids"),
                 text.name_or_null("mask"),
                 -1,
                 {},
                 "",
                 {}};
    if (text.has("end_id") && !text.get("end_id").is_null()) {
        host.text.end_id = text.whole("end_id", 0, std::numeric_limits<int>::max());
    }
    if (text.has("forms")) {
        for (const auto &[name, entry] : text.objects("forms", true)) {
            host.text.forms[name] = {entry.text("before"), entry.text("behind"),
                                     entry.boolean("lower")};
        }
    }
    if (text.has("form")) host.text.form = text.name_or_null("form");
    if (text.has("lengths")) host.text.lengths = lengths(text);
    host.image_index = fields.name_or_null("image_index");
    const json &categories = fields.get("categories");
    if (!categories.is_null()) {
        const Fields table(categories, "host.categories.", problems);
        host.categories = {table.file("names"), table.file("features"), table.name("value")};
    }
    for (const auto &[name, entry] : fields.objects("resizes", true)) {
        host.resizes.push_back({name, entry.name("of"), entry.whole("size", 1, kLargestSide),
                                interpolation(entry, "interpolation")});
    }
    if (fields.has("drawn")) {
        for (const auto &[name, entry] : fields.objects("drawn", true)) {
            host.drawn.push_back(drawn(name, entry));
        }
    }
    return host;
}

Manifest manifest(const Fields &fields, std::vector<std::string> &problems) {
    Manifest manifest;
    manifest.family = fields.name("family");
    const Fields source = fields.object("source");
    manifest.source_kind = source.text("kind");
    manifest.trained = source.boolean("trained");
    const json &model = fields.get("model");
    const auto preset = model.is_object() ? model.find("preset") : model.end();
    if (model.is_object() && preset != model.end() && preset->is_string()) {
        manifest.preset = preset->get<std::string>();
    }
    manifest.precision = fields.word("precision", {"fp32", "bf16", "fp16", "int8"});

    manifest.host = host(fields.object("host"), problems);
    for (const auto &[number, entry] : fields.objects("stages", false)) {
        manifest.stages.push_back(stage(entry));
    }
    const Fields answer = fields.object("answer");
    manifest.mask_logits = answer.name("mask_logits");
    manifest.no_target_logits = answer.name_or_null("no_target_logits");
    manifest.rule.interpolation = interpolation(answer, "interpolation");
    manifest.rule.threshold = answer.number("threshold");
    manifest.rule.of_probabilities =
        answer.has("of") && answer.word("of", {"logits", "probabilities"}) == "probabilities";
    manifest.rule.align_corners = answer.has("align_corners") && answer.boolean("align_corners");
    if (answer.has("letterbox_of")) manifest.letterbox_of = answer.name_or_null("letterbox_of");
    if (answer.has("mean_of")) manifest.mean_of = answer.name_or_null("mean_of");
    const HostImage *const box = named(manifest.host.images, manifest.letterbox_of);
    if (box != nullptr) manifest.rule.letterbox = box->size;

    manifest.golden = fields.file("golden");
    manifest.files = fields.hashes("files");
    return manifest;
}

}  // namespace

json parse_json(const std::string &text, const std::string &path) {
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

Manifest parse_manifest(const std::string &text, const std::string &path) {
    const json data = parse_json(text, path);
    const auto version = data.is_object() ? data.find("format_version") : data.end();
    if (data.is_object() && version != data.end() && version->is_number_integer() &&
        *version > kFormatVersion) {
        throw Error(RIS_ERROR_BUNDLE,
                    path + " has format version " + version->dump() + ", this libris reads up to " +
                        std::to_string(kFormatVersion) +
                        "; upgrade libris, or export the bundle again with this version");
    }

    std::vector<std::string> problems;
    const int written = Fields(data, "", problems).whole("format_version", 1, kFormatVersion);
    Manifest found;
    if (problems.empty()) {
        const json now = written == 1 ? dfam::as_format_2(data) : data;
        found = manifest(Fields(now, "", problems), problems);
        found.format_version = written;
    }
    if (problems.empty()) problems = contradictions(found);
    if (problems.empty()) return found;
    throw Error(RIS_ERROR_BUNDLE,
                path + " is damaged: " + joined(problems) + "; export the bundle again");
}

std::vector<std::string> parse_category_names(const std::string &text, const std::string &path) {
    const json data = parse_json(text, path);
    std::vector<std::string> names;
    try {
        for (const json &row : data) names.push_back(row.at("name").get<std::string>());
    } catch (const json::exception &) {
        throw Error(RIS_ERROR_BUNDLE, path + " is not a list of categories that can be read; "
                                             "export the bundle again");
    }
    return names;
}

std::string info_json(const Bundle &bundle, const Info &info) {
    const Manifest &manifest = bundle.manifest;
    json graphs = json::object();
    for (size_t i = 0; i < manifest.stages.size(); ++i) {
        json &graph = graphs[manifest.stages[i].name];
        graph = {{"precision", manifest.stages[i].precision}, {"provider", info.providers[i]}};
        if (!info.contexts[i].empty()) graph["ep_context"] = info.contexts[i];
    }
    json forms = json::array();
    for (const auto &[name, form] : manifest.host.text.forms) forms.push_back(name);
    const json all = {{"libris", ris_version()},
                      {"onnxruntime", info.onnxruntime},
                      {"bundle", bundle.path},
                      {"format_version", manifest.format_version},
                      {"family", manifest.family},
                      {"source", manifest.source_kind},
                      {"trained", manifest.trained},
                      {"preset", manifest.preset},
                      {"precision", manifest.precision},
                      {"graphs", graphs},
                      {"threads", info.threads},
                      {"max_tokens", manifest.host.text.max_tokens},
                      {"mask_logits", {info.mask_size, info.mask_size}},
                      {"no_target", !manifest.no_target_logits.empty()},
                      {"draws", !manifest.host.drawn.empty()},
                      {"forms", forms},
                      {"categories", info.categories}};
    return all.dump(2, ' ', false, json::error_handler_t::replace);
}

}  // namespace libris
