#include "model.h"

#include "drawn.h"
#include "error.h"
#include "fork.h"
#include "json.h"
#include "masks.h"
#include "processor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <set>

namespace libris {
namespace {

constexpr int64_t kMaxPixels = 120'000'000;  // a 100-megapixel camera's, with room to spare
constexpr int kMaxSide = 1'000'000;  // what a row or a column needs beside its pixels stays small

// The side of the masks that a model gives.
int side_of_masks(const Manifest &manifest) {
    for (const Stage &stage : manifest.stages) {
        const TensorSpec *const masks = named(stage.outputs, manifest.mask_logits);
        if (masks != nullptr) return masks->shape.back();
    }
    return 0;
}

// Maps of a stage, resized.
Array resized(const Ort::Value &maps, const Resize &resize) {
    std::vector<int64_t> shape = maps.GetTensorTypeAndShapeInfo().GetShape();
    const int h = static_cast<int>(shape[2]), w = static_cast<int>(shape[3]);
    shape[2] = shape[3] = resize.size;
    return {shape,
            resize_maps(maps.GetTensorData<float>(), static_cast<size_t>(shape[0] * shape[1]), h, w,
                        resize.size, resize.size, resize.interpolation)};
}

}  // namespace

Model::Graphs::Graphs(const Bundle &bundle, const EngineOptions &options)
    : opened_in(fork_generation()) {
    const std::vector<Stage> &stages = bundle.manifest.stages;
    for (size_t i = 0; i < stages.size(); ++i) {
        sessions.emplace_back(bundle, stages[i], options.providers[i], options);
    }
}

Model::Model(const std::string &path, const Options &options)
    : bundle_(read_bundle(path)),
      verify_(options.verify),
      engine_{providers_of(options.providers, bundle_.manifest),
              options.engine_cache,
              options.device_id,
              options.threads > 0 ? options.threads : usable_cores(),
              options.max_expressions > 0 ? options.max_expressions
                                          : bundle_.manifest.expressions_at_once(),
              options.strict},
      mask_size_(side_of_masks(bundle_.manifest)),
      turns_(turns_of(bundle_.manifest)) {
    check_engine_cache(engine_.engine_cache, engine_.providers);
    check_files(bundle_, verify_);
    start_onnxruntime();

    const Manifest &manifest = bundle_.manifest;
    const std::string tokenizer = bundle_.file(text().tokenizer);
    const TokenizerFile file = parse_tokenizer(read_file(tokenizer, "tokenizer"), tokenizer);
    tokenizer_ =
        std::make_unique<Tokenizer>(file, tokenizer, max_tokens(), pad_id(), text().end_id);

    if (manifest.host.categories) {
        const Categories &table = *manifest.host.categories;
        const std::string names = bundle_.file(table.names);
        category_names_ = parse_category_names(read_file(names, "list of categories"), names);
        const std::string features = bundle_.file(table.features);
        category_features_ =
            parse_features(read_file(features, "feature table", kLargestTable), features);
        if (category_features_.rows != category_names_.size()) {
            const std::string rows = std::to_string(category_features_.rows);
            throw Error(RIS_ERROR_BUNDLE, names + " has " + std::to_string(category_names_.size()) +
                                              " categories, the features have " + rows +
                                              " rows; export the bundle again");
        }
        for (const Stage &stage : manifest.stages) {
            for (const TensorSpec &spec : stage.inputs) {
                const size_t width = category_features_.width;
                if (spec.value != table.value || static_cast<size_t>(spec.shape[1]) == width) {
                    continue;
                }
                throw Error(RIS_ERROR_BUNDLE, features + " has rows of " + std::to_string(width) +
                                                  " numbers, the stage " + in_quotes(stage.name) +
                                                  " takes " + std::to_string(spec.shape[1]) +
                                                  "; export the bundle again");
            }
        }
    }

    auto graphs = std::make_unique<const Graphs>(bundle_, engine_);
    Info info{onnxruntime_version(), {}, {}, engine_.threads, mask_size_, category_names_};
    for (size_t i = 0; i < graphs->sessions.size(); ++i) {
        info.providers.emplace_back(provider_name(engine_.providers[i]));
        info.contexts.emplace_back(graphs->sessions[i].context());
    }
    info_ = info_json(bundle_, info);
    graphs_ = graphs.release();
}

Model::~Model() { let_go(graphs_); }

void Model::let_go(const Graphs *graphs) {
    if (graphs->opened_in == fork_generation()) {
        delete graphs;
        return;
    }
    // ending them would wait for threads that this process does not have; kept where leak checkers
    // see them
    static std::atomic<const Graphs *> parents{nullptr};
    graphs->next = parents.exchange(graphs);
}

const std::vector<Session> &Model::sessions() const {
    const Graphs *found = graphs_;
    if (found->opened_in == fork_generation()) return found->sessions;

    const auto is_gpu = [](Provider provider) { return provider != Provider::cpu; };
    if (std::any_of(engine_.providers.begin(), engine_.providers.end(), is_gpu)) {
        throw Error(RIS_ERROR_ENGINE, "the bundle was opened before fork(), which a GPU does not "
                                      "allow; open it in the process that asks");
    }
    check_files(bundle_, verify_);
    auto own = std::make_unique<const Graphs>(bundle_, engine_);
    if (!graphs_.compare_exchange_strong(found, own.get())) return found->sessions;
    let_go(found);
    return own.release()->sessions;
}

Tokens Model::tokens_of(const int32_t *row, size_t length) const {
    Tokens tokens{{row, row + length}, {}};
    for (const int32_t id : tokens.ids) {
        if (id != pad_id() && (id < 0 || id > tokenizer_->largest_id())) {
            throw Error(RIS_ERROR_EXPRESSION, "token id " + std::to_string(id) +
                                                  " is not in the model's vocabulary, 0 to " +
                                                  std::to_string(tokenizer_->largest_id()));
        }
    }
    const auto is_padding = [&](int32_t id) { return id == pad_id(); };
    if (std::all_of(tokens.ids.begin(), tokens.ids.end(), is_padding)) {
        throw Error(RIS_ERROR_EXPRESSION, "a row of token ids has nothing but padding (" +
                                              std::to_string(pad_id()) + ")");
    }
    return tokens;
}

Encoded Model::encode_image(const Image &image) const {
    if (static_cast<int64_t>(image.width) * image.height > kMaxPixels) {
        throw Error(RIS_ERROR_IMAGE, "the image is " + std::to_string(image.width) + "x" +
                                         std::to_string(image.height) + " pixels, the limit is " +
                                         std::to_string(kMaxPixels / 1'000'000) +
                                         " megapixels; make it smaller");
    }
    if (std::max(image.width, image.height) > kMaxSide) {
        throw Error(RIS_ERROR_IMAGE, "the image is " + std::to_string(image.width) + "x" +
                                         std::to_string(image.height) + " pixels, the limit is " +
                                         std::to_string(kMaxSide) + " a side; cut it");
    }

    const Manifest &manifest = bundle_.manifest;
    Values values;
    std::vector<std::vector<float>> images = prepare_images(image, manifest.host.images);
    for (size_t i = 0; i < images.size(); ++i) {
        const int64_t size = manifest.host.images[i].size;
        values.give(manifest.host.images[i].name, Array{{1, 3, size, size}, std::move(images[i])});
    }
    run(Turn::image, 1, values);

    Encoded encoded{image.width, image.height, {}};
    for (const Stage &stage : manifest.stages) {
        for (const TensorSpec &spec : stage.inputs) {
            const bool is_new = values.has(spec.value) && encoded.values.count(spec.value) == 0;
            if (!is_new || !stage.is_of_questions()) continue;
            encoded.values[spec.value] = values.taken(spec.value);
        }
    }
    return encoded;
}

std::vector<Model::Turn> Model::turns_of(const Manifest &manifest) {
    // values that depend on random numbers: on those of each draw, on their mean alone
    std::set<std::string> random, averaged{manifest.mean_of};
    for (const Drawn &drawn : manifest.host.drawn) random.insert(drawn.name);
    std::vector<Turn> turns;
    for (const Stage &stage : manifest.stages) {
        const auto takes = [&](const std::set<std::string> &values) {
            return std::any_of(
                stage.inputs.begin(), stage.inputs.end(),
                [&](const TensorSpec &spec) { return values.count(spec.value) != 0; });
        };
        if (!takes(random) && !takes(averaged)) {
            turns.push_back(stage.is_of_questions() ? Turn::question : Turn::image);
            continue;
        }
        turns.push_back(takes(random) ? Turn::draw : Turn::mean);
        std::set<std::string> &known = takes(random) ? random : averaged;
        for (const TensorSpec &spec : stage.outputs) {
            if (spec.name != manifest.mean_of) known.insert(spec.name);
            for (const Resize &resize : manifest.host.resizes) {
                if (resize.of == spec.name) known.insert(resize.name);
            }
        }
    }
    return turns;
}

void Model::run(Turn turn, int64_t expressions, Values &values) const {
    const Manifest &manifest = bundle_.manifest;
    const std::vector<Session> &graphs = sessions();
    for (size_t i = 0; i < graphs.size(); ++i) {
        const Stage &stage = manifest.stages[i];
        if (turns_[i] != turn) continue;
        std::vector<const Ort::Value *> inputs;
        for (const TensorSpec &spec : stage.inputs) inputs.push_back(&values.at(spec.value));
        std::vector<Ort::Value> outputs = graphs[i].run(inputs, expressions);
        for (size_t k = 0; k < outputs.size(); ++k) {
            const std::string &name = stage.outputs[k].name;
            const auto resize =
                std::find_if(manifest.host.resizes.begin(), manifest.host.resizes.end(),
                             [&](const Resize &one) { return one.of == name; });
            if (resize == manifest.host.resizes.end()) {
                values.give(name, std::move(outputs[k]));
            } else {
                values.give(resize->name, resized(outputs[k], *resize));
            }
        }
    }
}

std::vector<size_t> Model::category_rows(const Question &question) const {
    if (category_names_.empty()) {
        for (const std::string &name : question.categories) {
            if (name != "auto") {
                throw Error(RIS_ERROR_EXPRESSION,
                            "this model does not ask by category; leave the category " +
                                in_quotes(name) + " out");
            }
        }
        return {};
    }
    if (question.categories.empty()) {
        throw Error(RIS_ERROR_EXPRESSION, "this model asks by category: name each object's "
                                          "category in options.categories");
    }
    std::vector<size_t> rows;
    for (const std::string &name : question.categories) {
        const auto found = std::find(category_names_.begin(), category_names_.end(), name);
        if (found == category_names_.end()) {
            const std::string count = std::to_string(category_names_.size());
            throw Error(RIS_ERROR_EXPRESSION, "there is no category " + in_quotes(name) +
                                                  "; ris_info lists all " + count + ", such as " +
                                                  in_quotes(category_names_.front()));
        }
        rows.push_back(static_cast<size_t>(found - category_names_.begin()));
    }
    return rows;
}

Result Model::ask(const Encoded &scene, const Question &question) const {
    if (bundle_.manifest.host.drawn.empty() && (question.seed || question.draws > 0)) {
        throw Error(RIS_ERROR_ARGUMENT,
                    "this model draws no random numbers; leave seed and draws out");
    }
    const std::vector<size_t> rows = category_rows(question);
    const size_t most = static_cast<size_t>(engine_.max_expressions);
    Result result{scene.width, scene.height, mask_size_, {}};
    result.answers.reserve(question.expressions.size());
    for (size_t start = 0; start < question.expressions.size(); start += most) {
        const size_t count = std::min(most, question.expressions.size() - start);
        Values values;
        for (const auto &[name, array] : scene.values) values.give(name, tensor(array));
        give_expressions(question, start, count, rows, values);
        run(Turn::question, static_cast<int64_t>(count), values);
        run_draws(question, count, values);
        answer(scene, question, start, count, logits_of(count, values), result);
    }
    return result;
}

void Model::give_expressions(const Question &question, size_t start, size_t count,
                             const std::vector<size_t> &category_rows, Values &values) const {
    const Host &host = bundle_.manifest.host;
    const auto used = [&](const Tokens &tokens) {  // without the padding that ids may come with
        const auto is_read = [&](int32_t id) { return id != pad_id(); };
        const auto &row = tokens.ids;
        return static_cast<size_t>(row.rend() - std::find_if(row.rbegin(), row.rend(), is_read));
    };
    size_t longest = 0;
    for (size_t i = 0; i < count; ++i) {
        longest = std::max(longest, used(question.expressions[start + i]));
    }
    const int64_t n = static_cast<int64_t>(count), length = host.text.row_length(longest);
    std::vector<int32_t> ids(static_cast<size_t>(n * length), pad_id());
    for (size_t i = 0; i < count; ++i) {
        const Tokens &tokens = question.expressions[start + i];
        std::copy_n(tokens.ids.begin(), used(tokens),
                    ids.begin() + static_cast<std::ptrdiff_t>(i) * length);
    }
    if (!host.text.mask.empty()) {
        std::vector<float> mask(ids.size());
        std::transform(ids.begin(), ids.end(), mask.begin(),
                       [&](int32_t id) { return id != pad_id() ? 1.0f : 0.0f; });
        values.give(host.text.mask, Array{{n, length}, std::move(mask)});
    }
    values.give(host.text.ids, Array{{n, length}, std::move(ids)});
    if (!host.image_index.empty()) {
        values.give(host.image_index, Array{{n}, std::vector<int32_t>(count, 0)});
    }
    if (!host.categories) return;

    const auto width = static_cast<std::ptrdiff_t>(category_features_.width);
    std::vector<float> features;
    for (size_t i = start; i < start + count; ++i) {
        const auto row = category_features_.values.begin() +
                         static_cast<std::ptrdiff_t>(category_rows[i]) * width;
        features.insert(features.end(), row, row + width);
    }
    values.give(host.categories->value, Array{{n, width}, std::move(features)});
}

void Model::run_draws(const Question &question, size_t count, Values &values) const {
    const Manifest &manifest = bundle_.manifest;
    const std::vector<Drawn> &drawn = manifest.host.drawn;
    std::vector<std::string> averaged{manifest.mean_of};
    if (manifest.mean_of.empty()) averaged = {manifest.mask_logits};
    if (manifest.mean_of.empty() && !manifest.no_target_logits.empty()) {
        averaged.push_back(manifest.no_target_logits);
    }
    const int draws = std::max(question.draws, 1);
    std::map<std::string, Array> totals;
    for (int number = 0; number < draws; ++number) {
        for (size_t place = 0; place < drawn.size(); ++place) {
            const int seed = question.seed.value_or(drawn[place].seed);
            const std::vector<float> row = draw(drawn[place], static_cast<uint64_t>(seed),
                                                static_cast<uint64_t>(number), place);
            std::vector<int64_t> shape{static_cast<int64_t>(count)};
            shape.insert(shape.end(), drawn[place].shape.begin(), drawn[place].shape.end());
            std::vector<float> rows;  // every expression gets the same
            for (size_t i = 0; i < count; ++i) rows.insert(rows.end(), row.begin(), row.end());
            values.give(drawn[place].name, Array{shape, std::move(rows)});
        }
        run(Turn::draw, static_cast<int64_t>(count), values);
        for (const std::string &name : averaged) {
            if (draws == 1) continue;  // it stays as it is
            if (number == 0) {
                totals[name] = copied(values.at(name));
                continue;
            }
            std::vector<float> &total = std::get<std::vector<float>>(totals[name].data);
            const float *from = values.at(name).GetTensorData<float>();
            std::transform(total.begin(), total.end(), from, total.begin(), std::plus<float>());
        }
    }
    for (auto &[name, total] : totals) {
        for (float &value : std::get<std::vector<float>>(total.data)) {
            value /= static_cast<float>(draws);
        }
        values.give(name, std::move(total));
    }
    run(Turn::mean, static_cast<int64_t>(count), values);
}

Model::Logits Model::logits_of(size_t count, const Values &values) const {
    const Manifest &manifest = bundle_.manifest;
    const auto numbers = [&](const std::string &name, size_t size) {
        const float *from = values.at(name).GetTensorData<float>();
        return std::vector<float>(from, from + size);
    };
    const size_t side = static_cast<size_t>(mask_size_);
    Logits found{numbers(manifest.mask_logits, count * side * side), {}};
    if (!manifest.no_target_logits.empty()) {
        found.no_target = numbers(manifest.no_target_logits, count * 2);
    }
    return found;
}

void Model::answer(const Encoded &scene, const Question &question, size_t start, size_t count,
                   const Logits &found, Result &result) const {
    const Manifest &manifest = bundle_.manifest;
    const size_t low = static_cast<size_t>(mask_size_) * static_cast<size_t>(mask_size_);
    const float *logits = found.masks.data();
    const bool decides = !manifest.no_target_logits.empty();
    const float *pair = found.no_target.data();
    for (size_t i = 0; i < count; ++i, logits += low) {
        Answer answer;
        answer.logits.assign(logits, logits + low);
        for (const std::string &note : question.expressions[start + i].notes) {
            answer.notes += (answer.notes.empty() ? "" : "\n") + note;
        }
        if (decides) {
            // softmax over (target, no target)
            answer.no_target =
                1 / (1 + std::exp(static_cast<double>(pair[0]) - static_cast<double>(pair[1])));
            pair += 2;
            answer.is_no_target = answer.no_target > question.no_target_threshold;
        }
        if (answer.is_no_target) {
            const size_t pixels =
                static_cast<size_t>(scene.width) * static_cast<size_t>(scene.height);
            answer.mask.assign(pixels, 0);
        } else {
            const Size picture{scene.height, scene.width};
            const MaskRule &rule = manifest.rule;
            answer.mask = mask_from_logits(logits, mask_size_, mask_size_, picture, rule);
            answer.score = mask_score(logits, mask_size_, mask_size_, picture, rule);
        }
        result.answers.push_back(std::move(answer));
    }
}

}  // namespace libris
