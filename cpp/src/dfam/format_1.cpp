#include "format_1.h"

#include <nlohmann/json.hpp>

#include <string>

namespace libris::dfam {
namespace {

using nlohmann::json;
using namespace nlohmann::literals;

// A null where there is no such field.
json field(const json &data, const char *name) {
    return data.is_object() && data.contains(name) ? data[name] : json();
}

// An object with more fields, in place of its own; anything else as it is.
json with(json entry, const json &more) {
    if (entry.is_object()) entry.update(more);
    return entry;
}

// What an input takes: the value of its own name, but for a few.
json value_of(const std::string &stage, const json &input) {
    if (stage == "sam_image_encoder" && input == "image") return "sam_image";
    if (stage == "clip_image_encoder" && input == "image") return "clip_image";
    if (stage == "mask_decoder" && input == "dense_prompt") return "dense_embedding";
    return input;
}

json stages(const json &graphs) {
    if (!graphs.is_object()) return graphs;
    json all = json::array();
    for (const char *const name :
         {"sam_image_encoder", "clip_image_encoder", "text_encoder", "fusion", "mask_decoder"}) {
        if (!graphs.contains(name)) continue;
        json stage = with(graphs[name], {{"name", name}});
        json inputs = field(stage, "inputs");
        for (json &input : inputs) {
            input = with(input, {{"value", value_of(name, field(input, "name"))}});
        }
        if (stage.is_object()) stage["inputs"] = std::move(inputs);
        all.push_back(std::move(stage));
    }
    return all;
}

// A square of one of the image encoders; where its filter is another one, the reader tells.
json image(const json &square, const char *filter, json made) {
    const json found = field(square, "interpolation");
    if (found != filter) made["filter"] = found;
    return with(square, made);
}

json host(const json &data) {
    json host = {{"image_index", "image_index"}};
    const json images = field(data, "preprocess"), dense = field(data, "dense_prompt");
    const json sam = R"({"of": "picture", "fit": "square", "filter": "bilinear",
                         "antialias": true, "levels": 255})"_json;
    const json clip = R"({"of": "sam_image", "fit": "square", "filter": "bicubic",
                          "antialias": false, "levels": 1})"_json;
    if (images.contains("sam")) {
        host["images"]["sam_image"] = image(images["sam"], "pillow-bilinear-uint8", sam);
    }
    if (images.contains("clip")) {
        host["images"]["clip_image"] = image(images["clip"], "bicubic", clip);
    }
    host["text"] =
        with(field(data, "text"), {{"pad_id", 0}, {"ids", "input_ids"}, {"mask", "text_mask"}});
    host["categories"] = with(field(data, "categories"), {{"value", "category_feature"}});
    host["resizes"]["dense_embedding"] =
        with(dense, {{"of", "dense_prompt"}, {"size", field(dense, "target")}});
    return host;
}

json answer(const json &data) {
    json answer = with(field(data, "postprocess"), {{"mask_logits", "mask_logits"}});
    if (!answer.is_object()) return answer;
    const json head = field(data, "no_target");
    json &logits = answer["no_target_logits"];
    if (head == true) logits = "no_target_logits";
    else if (head != false) logits = 0;  // no name, which the reader says
    return answer;
}

}  // namespace

json as_format_2(const json &data) {
    return with(data, {{"family", "dfam"},
                       {"host", host(data)},
                       {"stages", stages(field(data, "graphs"))},
                       {"answer", answer(data)}});
}

}  // namespace libris::dfam
