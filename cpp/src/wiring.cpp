#include "wiring.h"

#include "error.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>
#include <utility>

namespace libris {
namespace {

constexpr int kAny = 0;  // an axis of any size
constexpr int kEach = TensorSpec::expressions;

// Names of no value: what Python's golden.npz has beside values, and what writes it takes.
const std::set<std::string> kKeptNames{"picture",    "rgb",  "expressions",
                                       "categories", "file", "allow_pickle"};
// Names of no stage and no resize: the host's own steps in Python's timings.
const std::set<std::string> kHostSteps{"load", "prepare", "tokenize", "mask"};

// A value, and what gives it. by: a stage's name, "" for the host; place: the same in words.
struct Given : TensorSpec {
    std::string by, place;
};

// The dtype and shape for people.
std::string words(const TensorSpec &spec, const char *any = "any") {
    std::string sizes;
    for (const int size : spec.shape) {
        sizes += sizes.empty() ? "" : ", ";
        sizes += size == kAny                      ? any
                 : size == TensorSpec::images      ? "images"
                 : size == TensorSpec::expressions ? "expressions"
                 : size == TensorSpec::tokens      ? "tokens"
                                                   : std::to_string(size);
    }
    const char *const dtype = spec.dtype == Dtype::int32     ? "int32 ["
                              : spec.dtype == Dtype::float16 ? "float16 ["
                                                             : "float32 [";
    return dtype + sizes + "]";
}

// Whether a tensor is of the kind and shape that another says.
bool fits(const TensorSpec &spec, const TensorSpec &wanted) {
    const auto equal = [](int size, int wants) { return wants == kAny ? size > 0 : size == wants; };
    return spec.dtype == wanted.dtype && spec.shape.size() == wanted.shape.size() &&
           std::equal(spec.shape.begin(), spec.shape.end(), wanted.shape.begin(), equal);
}

class Reader {
public:
    explicit Reader(const Manifest &manifest) : manifest_(manifest) {}

    std::vector<std::string> read() {
        find_unhashed();
        find_two_hashes();
        const size_t before = found_.size();
        find_names();
        find_images();
        if (found_.size() > before) return found_;  // what follows would say it again
        find_forms();
        find_lengths();
        find_resizes();
        std::set<std::string> ran{""};  // the host
        for (const Stage &stage : manifest_.stages) find_stage(stage, ran);
        find_idle_numbers();
        find_answer("mask_logits", manifest_.mask_logits, {kEach, 1, kAny, kAny});
        if (!manifest_.no_target_logits.empty()) {
            find_answer("no_target_logits", manifest_.no_target_logits, {kEach, 2});
        }
        find_mean();
        find_mask_rule();
        return found_;
    }

private:
    void find_unhashed() {
        const Host &host = manifest_.host;
        find_hash("host.text.tokenizer", host.text.tokenizer, manifest_.files);
        find_hash("golden", manifest_.golden, manifest_.files);
        if (host.categories) {
            find_hash("host.categories.names", host.categories->names, manifest_.files);
            find_hash("host.categories.features", host.categories->features, manifest_.files);
        }
        for (size_t i = 0; i < manifest_.stages.size(); ++i) {
            const Stage &stage = manifest_.stages[i];
            find_hash("stages." + std::to_string(i) + ".file", stage.file, stage.sha256);
        }
    }

    void find_hash(const std::string &field, const std::string &name,
                   const std::map<std::string, std::string> &hashes) {
        if (hashes.count(name) != 0) return;
        tell(field + " is " + in_quotes(name) + ", which has no sha256 in the manifest");
    }

    void find_two_hashes() {
        std::map<std::string, std::string> first = manifest_.files;
        for (const Stage &stage : manifest_.stages) {
            for (const auto &[name, sha256] : stage.sha256) {
                if (first.insert({name, sha256}).first->second == sha256) continue;
                tell(in_quotes(name) + " has two different sha256 in the manifest");
            }
        }
    }

    // Collects all values; stages and values that are there twice, or have a name that is kept.
    void find_names() {
        std::set<std::string> seen;
        for (const Stage &stage : manifest_.stages) {
            if (seen.insert(stage.name).second) continue;
            tell("two stages are called " + in_quotes(stage.name));
        }
        const Host &host = manifest_.host;
        const char *const shares =
            " has the name of another step, and steps are timed by their names";
        for (const Stage &stage : manifest_.stages) {
            if (kHostSteps.count(stage.name) == 0) continue;
            tell("the stage " + in_quotes(stage.name) + shares);
        }
        for (const Resize &resize : host.resizes) {
            if (kHostSteps.count(resize.name) + seen.count(resize.name) == 0) continue;
            tell("host.resizes." + resize.name + shares);
        }
        for (const HostImage &image : host.images) {
            give(image.name, "host.images." + image.name, Dtype::float32,
                 {TensorSpec::images, 3, image.size, image.size});
        }
        const bool varies = !host.text.lengths.empty();
        const std::vector<int> row{kEach, varies ? TensorSpec::tokens : host.text.max_tokens};
        give(host.text.ids, "host.text.ids", Dtype::int32, row);
        if (!host.text.mask.empty()) give(host.text.mask, "host.text.mask", Dtype::float32, row);
        if (!host.image_index.empty())
            give(host.image_index, "host.image_index", Dtype::int32, {kEach});
        if (host.categories) {
            give(host.categories->value, "host.categories", Dtype::float32, {kEach, kAny});
        }
        for (const Drawn &drawn : host.drawn) {
            std::vector<int> numbers{kEach};
            numbers.insert(numbers.end(), drawn.shape.begin(), drawn.shape.end());
            give(drawn.name, "host.drawn." + drawn.name, Dtype::float32, std::move(numbers));
        }
        for (const Stage &stage : manifest_.stages) {
            for (const TensorSpec &spec : stage.outputs) {
                give(spec.name, "the stage " + in_quotes(stage.name), spec.dtype, spec.shape,
                     stage.name);
                outputs_[spec.name] = &given_[spec.name];
            }
        }
        for (const Resize &resize : host.resizes) {
            const Given *const of = output(resize.of);
            std::vector<int> shape = of == nullptr ? std::vector<int>() : of->shape;
            shape.resize(std::min<size_t>(shape.size(), 2));
            if (of != nullptr) shape.insert(shape.end(), 2, resize.size);
            give(resize.name, "host.resizes." + resize.name, Dtype::float32, std::move(shape),
                 of == nullptr ? "" : of->by);
        }
    }

    void give(const std::string &name, const std::string &place, Dtype dtype,
              std::vector<int> shape, const std::string &by = "") {
        const auto [first, is_new] =
            given_.insert({name, {{name, name, dtype, std::move(shape)}, by, place}});
        if (kKeptNames.count(name) != 0) {
            tell("the value " + in_quotes(name) + " has a name that is kept for something else");
            return;
        }
        if (is_new) return;
        tell("the value " + in_quotes(name) + " is given twice, by " + first->second.place +
             " and by " + place);
    }

    void find_images() {
        const std::vector<HostImage> &images = manifest_.host.images;
        const auto is_of_picture = [](const HostImage &image) { return image.is_of_picture(); };
        if (std::none_of(images.begin(), images.end(), is_of_picture)) {
            tell("host.images has no image of the picture");
        }
        for (const HostImage &image : images) {
            const std::string place = "host.images." + image.name + " is made ";
            const HostImage *const of = named(images, image.of);
            const bool is_first = image.is_of_picture();
            const bool is_cubic = image.filter == Interpolation::bicubic;
            if (!is_first && of == nullptr) {
                tell(place + "of " + in_quotes(image.of) + ", which is no image of the host");
            } else if (!is_first && !of->is_of_picture()) {
                tell(place + "of " + in_quotes(image.of) + ", which is not made of the picture");
            } else if (!is_first && of->fit != "square") {
                tell(place + "of " + in_quotes(image.of) + ", which is a " + of->fit +
                     " and no square");
            } else if (!is_first && !of->antialias) {
                tell(place + "of " + in_quotes(image.of) + ", which has no 8-bit levels");
            } else if (is_first && image.antialias ? image.is_crop() != is_cubic
                                                   : image.fit != "square" || image.antialias) {
                tell(place + "in a way that this version does not have: of " + in_quotes(image.of) +
                     ", fit " + image.fit + (is_cubic ? ", bicubic, " : ", bilinear, ") +
                     (image.antialias ? "with" : "without") + " antialias");
            }
        }
    }

    void find_forms() {
        const Text &text = manifest_.host.text;
        if (text.form.empty() && !text.forms.empty()) {
            tell("host.text.form is null, and host.text.forms has some");
        } else if (!text.form.empty() && text.forms.count(text.form) == 0) {
            tell("host.text.form is " + in_quotes(text.form) +
                 ", which is none of host.text.forms");
        }
    }

    void find_lengths() {
        const Text &text = manifest_.host.text;
        if (text.lengths.empty() || text.lengths.back() == text.max_tokens) return;
        tell("host.text.lengths ends with " + std::to_string(text.lengths.back()) +
             ", and host.text.max_tokens is " + std::to_string(text.max_tokens));
    }

    void find_resizes() {
        std::set<std::string> taken{manifest_.mask_logits, manifest_.no_target_logits,
                                    manifest_.mean_of};
        for (const Stage &stage : manifest_.stages) {
            for (const TensorSpec &spec : stage.inputs) taken.insert(spec.value);
        }
        for (const Resize &resize : manifest_.host.resizes) {
            const std::string place = "host.resizes." + resize.name + " is of the value " +
                                      in_quotes(resize.of) + ", which";
            const Given *const of = output(resize.of);
            if (of == nullptr) {
                tell(place + " no stage gives");
            } else if (of->dtype != Dtype::float32 || of->shape.size() != 4 || of->shape[3] < 0) {
                tell(place + " is " + words(*of) +
                     ", no maps [N, channels, height, width] of float32");
            } else if (!taken.insert(resize.of).second) {
                tell(place + " is also taken as it is, or resized twice");
            }
        }
    }

    void find_stage(const Stage &stage, std::set<std::string> &ran) {
        const std::string place = "the stage " + in_quotes(stage.name);
        for (const TensorSpec &spec : stage.inputs) {
            const std::string takes = place + " takes the value " + in_quotes(spec.value);
            const auto value = given_.find(spec.value);
            if (value == given_.end()) {
                tell(takes + ", which nothing gives");
            } else if (ran.count(value->second.by) == 0) {
                tell(takes + ", which the stage " + in_quotes(value->second.by) +
                     " gives, and that runs no earlier");
            } else if (!fits(spec, value->second)) {
                tell(takes + " as " + words(spec) + "; it is " + words(value->second));
            }
        }
        const bool asks = stage.is_of_questions();
        const auto varies = [](int size) { return size < 0; };
        for (const TensorSpec &spec : stage.outputs) {
            const std::vector<int> &shape = spec.shape;
            if (!shape.empty() && shape[0] == (asks ? kEach : TensorSpec::images) &&
                std::none_of(shape.begin() + 1, shape.end(), varies)) {
                continue;
            }
            tell(place + " gives the value " + in_quotes(spec.name) + " as " + words(spec) +
                 "; its inputs say that the first axis is " + (asks ? "expressions" : "images") +
                 ", and the only one that varies");
        }
        ran.insert(stage.name);
    }

    void find_idle_numbers() {
        std::set<std::string> taken;
        for (const Stage &stage : manifest_.stages) {
            for (const TensorSpec &spec : stage.inputs) taken.insert(spec.value);
        }
        for (const Drawn &drawn : manifest_.host.drawn) {
            if (taken.count(drawn.name) != 0) continue;
            tell("host.drawn." + drawn.name + " is a value that no stage takes");
        }
    }

    // The values with all that is made of them but for `without`, and the stages that do that.
    std::pair<std::set<std::string>, std::set<std::string>>
    made_of(std::set<std::string> known, const std::string &without = "") const {
        std::set<std::string> stages;
        for (const Stage &stage : manifest_.stages) {
            const auto is_known = [&](const TensorSpec &spec) { return known.count(spec.value); };
            if (std::none_of(stage.inputs.begin(), stage.inputs.end(), is_known)) continue;
            stages.insert(stage.name);
            for (const TensorSpec &spec : stage.outputs) {
                if (spec.name != without) known.insert(spec.name);
                for (const Resize &resize : manifest_.host.resizes) {
                    if (resize.of == spec.name) known.insert(resize.name);
                }
            }
        }
        return {known, stages};
    }

    // Why draws cannot be averaged where the manifest says.
    void find_mean() {
        const std::string &name = manifest_.mean_of;
        if (name.empty()) return;
        const std::string place = "answer.mean_of is the value " + in_quotes(name) + ", which";
        const Given *const value = output(name);
        if (value == nullptr) return tell(place + " no stage gives");
        if (value->dtype != Dtype::float32) tell(place + " is " + words(*value) + ", not float32");
        std::set<std::string> numbers;
        for (const Drawn &drawn : manifest_.host.drawn) numbers.insert(drawn.name);
        if (made_of(numbers).first.count(name) == 0) {
            return tell(place + " depends on no random numbers");
        }
        const auto [beside, drawn] = made_of(numbers, name);
        const std::set<std::string> averaged = made_of({name}).second;
        for (const Stage &stage : manifest_.stages) {
            if (averaged.count(stage.name) == 0 || drawn.count(stage.name) == 0) continue;
            tell("the stage " + in_quotes(stage.name) +
                 " takes random numbers beside answer.mean_of");
        }
        for (const auto &[field, logits] :
             {std::pair{"mask_logits", manifest_.mask_logits},
              std::pair{"no_target_logits", manifest_.no_target_logits}}) {
            if (beside.count(logits) == 0) continue;
            tell(std::string("answer.") + field +
                 " depends on random numbers beside answer.mean_of");
        }
    }

    // What makes no mask of logits.
    void find_mask_rule() {
        const MaskRule &rule = manifest_.rule;
        if (rule.of_probabilities && !(rule.threshold >= 0 && rule.threshold <= 1)) {
            char threshold[32];
            std::snprintf(threshold, sizeof threshold, "%g", static_cast<double>(rule.threshold));
            tell(std::string("answer.threshold is ") + threshold +
                 ", no probability from 0 to 1, and the answer is of probabilities");
        }
        std::string letterboxes;
        bool is_named = false;
        for (const HostImage &image : manifest_.host.images) {
            if (!image.is_letterbox()) continue;
            letterboxes += (letterboxes.empty() ? "" : ", ") + image.name;
            is_named = is_named || image.name == manifest_.letterbox_of;
        }
        if (manifest_.letterbox_of.empty() && !letterboxes.empty()) {
            tell("answer.letterbox_of names none of the letterboxes of host.images: " +
                 letterboxes);
        } else if (!manifest_.letterbox_of.empty() && !is_named) {
            tell("answer.letterbox_of is " + in_quotes(manifest_.letterbox_of) +
                 ", which is no letterbox of host.images");
        }
    }

    void find_answer(const char *field, const std::string &name, const std::vector<int> &shape) {
        const TensorSpec wanted{name, name, Dtype::float32, shape};
        const std::string place =
            std::string("answer.") + field + " is the value " + in_quotes(name) + ", which";
        const Given *const value = output(name);
        if (value == nullptr) {
            tell(place + " no stage gives");
        } else if (!fits(*value, wanted) ||
                   (shape.size() == 4 && value->shape[2] != value->shape[3])) {
            tell(place + " is " + words(*value) + ", not " + words(wanted, "side"));
        }
    }

    // What a stage gives; null where none does.
    const Given *output(const std::string &name) const {
        const auto found = outputs_.find(name);
        return found == outputs_.end() ? nullptr : found->second;
    }

    void tell(std::string sentence) { found_.push_back(std::move(sentence)); }

    const Manifest &manifest_;
    std::map<std::string, Given> given_;
    std::map<std::string, const Given *> outputs_;
    std::vector<std::string> found_;
};

}  // namespace

std::vector<std::string> contradictions(const Manifest &manifest) {
    return Reader(manifest).read();
}

}  // namespace libris
