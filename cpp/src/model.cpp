#include "model.h"

#include "error.h"
#include "fork.h"
#include "json.h"
#include "masks.h"
#include "processor.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace libris {
namespace {

constexpr int64_t kMaxPixels = 120'000'000;  // a 100-megapixel camera's, with room to spare
constexpr int kMaxSide = 1'000'000;  // what a row or a column needs beside its pixels stays small

// The size of a square map [expressions, channels, size, size].
int square_size(const Graph &graph, const char *output, int &channels) {
    const TensorSpec &spec = graph.output(output);
    if (spec.shape.size() != 4 || spec.shape[0] != TensorSpec::expressions || spec.shape[1] < 1 ||
        spec.shape[2] < 1 || spec.shape[2] != spec.shape[3] || spec.is_int32) {
        throw Error(RIS_ERROR_BUNDLE,
                    graph.file + ": the output " + output +
                        " should be float32 [expressions, channels, size, size] in the manifest; "
                        "export the bundle again");
    }
    channels = spec.shape[1];
    return spec.shape[2];
}

size_t index_of(const Graph &graph, const char *output) {
    return static_cast<size_t>(&graph.output(output) - graph.outputs.data());
}

}  // namespace

Model::Graphs::Graphs(const Bundle &bundle, const EngineOptions &options)
    : opened_in(fork_generation()) {
    for (int stage = 0; stage < kStages; ++stage) {
        sessions.emplace_back(bundle, static_cast<Stage>(stage), options);
    }
}

Model::Model(const std::string &path, const Options &options)
    : bundle_(open_bundle(path, options.verify)),
      verify_(options.verify),
      engine_{options.providers,       options.engine_cache,
              options.device_id,       options.threads > 0 ? options.threads : usable_cores(),
              options.max_expressions, options.strict} {
    start_onnxruntime();
    const Manifest &manifest = bundle_.manifest;

    int one = 1;
    mask_size_ = square_size(manifest.graphs[mask_decoder], "mask_logits", one);
    const int grid = square_size(manifest.graphs[fusion], "dense_prompt", prompt_width_);
    if (one != 1 || grid != manifest.dense_grid) {
        throw Error(RIS_ERROR_BUNDLE, path + "/manifest.json: dense_prompt.grid or mask_logits "
                                             "differs from the graph; export the bundle again");
    }
    const std::vector<int> pairs{TensorSpec::expressions, 2};
    if (manifest.no_target && manifest.graphs[fusion].output("no_target_logits").shape != pairs) {
        throw Error(RIS_ERROR_BUNDLE, path + "/manifest.json: no_target_logits should be "
                                             "[expressions, 2]; export the bundle again");
    }

    const std::string tokenizer = bundle_.file(manifest.tokenizer);
    const TokenizerFile file = parse_tokenizer(read_file(tokenizer, "tokenizer"), tokenizer);
    tokenizer_ = std::make_unique<Tokenizer>(file, tokenizer, manifest.max_tokens);

    if (manifest.categories) {
        const std::string names = bundle_.file(manifest.categories->first);
        category_names_ = parse_category_names(read_file(names, "list of categories"), names);
        const std::string features = bundle_.file(manifest.categories->second);
        category_features_ = parse_features(read_file(features, "feature table"), features);
        if (category_features_.rows != category_names_.size()) {
            const std::string rows = std::to_string(category_features_.rows);
            throw Error(RIS_ERROR_BUNDLE, names + " has " + std::to_string(category_names_.size()) +
                                              " categories, the features have " + rows +
                                              " rows; export the bundle again");
        }
    }

    auto graphs = std::make_unique<const Graphs>(bundle_, engine_);
    Info info{onnxruntime_version(), {}, {}, engine_.threads, mask_size_, category_names_};
    for (size_t stage = 0; stage < kStages; ++stage) {
        info.providers[stage] = provider_name(engine_.providers[stage]);
        info.contexts[stage] = graphs->sessions[stage].context();
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
        if (id < 0 || id > tokenizer_->largest_id()) {
            throw Error(RIS_ERROR_EXPRESSION, "token id " + std::to_string(id) +
                                                  " is not in the model's vocabulary, 0 to " +
                                                  std::to_string(tokenizer_->largest_id()));
        }
    }
    if (std::all_of(tokens.ids.begin(), tokens.ids.end(), [](int32_t id) { return id == 0; })) {
        throw Error(RIS_ERROR_EXPRESSION, "a row of token ids has nothing but padding (0)");
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

    const Preprocess &preprocess = bundle_.manifest.preprocess;
    EncoderInputs inputs = prepare_image(image, preprocess);
    const int64_t sam = preprocess.sam.size, clip = preprocess.clip.size;
    const Ort::Value sam_image = tensor(inputs.sam, {1, 3, sam, sam});
    const Ort::Value clip_image = tensor(inputs.clip, {1, 3, clip, clip});

    const std::vector<Session> &graphs = sessions();
    const auto encode = [&](Stage stage, const Ort::Value &square, const char *output) {
        const std::vector<Ort::Value> outputs = graphs[stage].run({{"image", &square}}, 1);
        const Ort::Value &value = outputs[index_of(bundle_.manifest.graphs[stage], output)];
        const float *const data = value.GetTensorData<float>();
        return std::vector<float>(data, data + value.GetTensorTypeAndShapeInfo().GetElementCount());
    };
    return {image.width, image.height, encode(sam_image_encoder, sam_image, "image_embeddings"),
            encode(clip_image_encoder, clip_image, "clip_tokens")};
}

std::vector<size_t> Model::category_rows(const Question &question) const {
    if (category_names_.empty()) {
        for (const std::string &name : question.categories) {
            if (name != "auto") {
                throw Error(RIS_ERROR_EXPRESSION,
                            "this model does not ask by category; leave the category " +
                                quoted(name) + " out");
            }
        }
        return {};
    }
    if (question.categories.empty()) {
        throw Error(RIS_ERROR_EXPRESSION, "this model asks by category: name each object's COCO "
                                          "category in options.categories");
    }
    std::vector<size_t> rows;
    for (const std::string &name : question.categories) {
        const auto found = std::find(category_names_.begin(), category_names_.end(), name);
        if (found == category_names_.end()) {
            const std::string count = std::to_string(category_names_.size());
            throw Error(RIS_ERROR_EXPRESSION, "there is no category " + quoted(name) +
                                                  "; ris_info lists all " + count + ", such as " +
                                                  quoted(category_names_.front()));
        }
        rows.push_back(static_cast<size_t>(found - category_names_.begin()));
    }
    return rows;
}

Result Model::ask(const Encoded &scene, const Question &question) const {
    const std::vector<size_t> rows = category_rows(question);
    const size_t most = static_cast<size_t>(engine_.max_expressions);
    Result result{scene.width, scene.height, mask_size_, {}};
    result.answers.reserve(question.expressions.size());
    for (size_t start = 0; start < question.expressions.size(); start += most) {
        const size_t count = std::min(most, question.expressions.size() - start);
        ask_part(scene, question, start, count, rows, result);
    }
    return result;
}

void Model::ask_part(const Encoded &scene, const Question &question, size_t start, size_t count,
                     const std::vector<size_t> &category_rows, Result &result) const {
    const Manifest &manifest = bundle_.manifest;
    const std::vector<Session> &graphs = sessions();
    const int64_t n = static_cast<int64_t>(count), length = manifest.max_tokens;
    std::vector<int32_t> ids(static_cast<size_t>(n * length), 0), image_index(count, 0);
    std::vector<float> mask(ids.size(), 0.0f);
    for (size_t i = 0; i < count; ++i) {
        const std::vector<int32_t> &row = question.expressions[start + i].ids;
        std::copy(row.begin(), row.end(), ids.begin() + static_cast<std::ptrdiff_t>(i) * length);
    }
    std::transform(ids.begin(), ids.end(), mask.begin(),
                   [](int32_t id) { return id != 0 ? 1.0f : 0.0f; });

    const Ort::Value input_ids = tensor(ids, {n, length}), text_mask = tensor(mask, {n, length});
    const Ort::Value index = tensor(image_index, {n});
    const std::vector<Ort::Value> text = graphs[text_encoder].run({{"input_ids", &input_ids}}, n);

    const auto encoded = [&](const std::vector<float> &values, Stage stage, const char *output) {
        return tensor(values, real_shape(manifest.graphs[stage].output(output), n));
    };
    const Ort::Value embeddings =
        encoded(scene.image_embeddings, sam_image_encoder, "image_embeddings");
    const Ort::Value clip = encoded(scene.clip_tokens, clip_image_encoder, "clip_tokens");
    const Graph &reading = manifest.graphs[text_encoder], &fusing = manifest.graphs[fusion];
    Session::Feeds feeds = {{"clip_tokens", &clip},
                            {"text_features", &text[index_of(reading, "text_features")]},
                            {"text_mask", &text_mask},
                            {"image_index", &index}};
    if (manifest.no_target) feeds.emplace_back("image_embeddings", &embeddings);

    std::vector<float> features;
    Ort::Value category_feature{nullptr};
    if (!category_rows.empty()) {
        const auto width = static_cast<std::ptrdiff_t>(category_features_.width);
        for (size_t i = start; i < start + count; ++i) {
            const auto row = category_features_.values.begin() +
                             static_cast<std::ptrdiff_t>(category_rows[i]) * width;
            features.insert(features.end(), row, row + width);
        }
        category_feature = tensor(features, {n, width});
        feeds.emplace_back("category_feature", &category_feature);
    }
    const std::vector<Ort::Value> fused = graphs[fusion].run(feeds, n);

    const int grid = manifest.dense_grid, target = manifest.dense_target;
    const float *maps = fused[index_of(fusing, "dense_prompt")].GetTensorData<float>();
    std::vector<float> dense = resize_maps(maps, count * static_cast<size_t>(prompt_width_), grid,
                                           grid, target, target, manifest.dense_interpolation);
    const Ort::Value dense_prompt = tensor(dense, {n, prompt_width_, target, target});
    const Session::Feeds prompts = {{"image_embeddings", &embeddings},
                                    {"dense_prompt", &dense_prompt},
                                    {"sparse_prompt", &fused[index_of(fusing, "sparse_prompt")]},
                                    {"image_index", &index}};
    const std::vector<Ort::Value> decoded = graphs[mask_decoder].run(prompts, n);

    const size_t low = static_cast<size_t>(mask_size_) * static_cast<size_t>(mask_size_);
    const size_t at = index_of(manifest.graphs[mask_decoder], "mask_logits");
    const float *logits = decoded[at].GetTensorData<float>();
    for (size_t i = 0; i < count; ++i, logits += low) {
        Answer answer;
        answer.logits.assign(logits, logits + low);
        for (const std::string &note : question.expressions[start + i].notes) {
            answer.notes += (answer.notes.empty() ? "" : "\n") + note;
        }
        if (manifest.no_target) {
            // softmax over (target, no target)
            const float *pair =
                fused[index_of(fusing, "no_target_logits")].GetTensorData<float>() + 2 * i;
            answer.no_target =
                1 / (1 + std::exp(static_cast<double>(pair[0]) - static_cast<double>(pair[1])));
            answer.is_no_target = answer.no_target > question.no_target_threshold;
        }
        if (answer.is_no_target) {
            const size_t pixels =
                static_cast<size_t>(scene.width) * static_cast<size_t>(scene.height);
            answer.mask.assign(pixels, 0);
        } else {
            answer.mask = mask_from_logits(logits, mask_size_, mask_size_, scene.height,
                                           scene.width, manifest.threshold);
            answer.score = mask_score(logits, low, manifest.threshold);
        }
        result.answers.push_back(std::move(answer));
    }
}

}  // namespace libris
