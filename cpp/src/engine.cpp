#include "engine.h"

#include "context.h"
#include "error.h"
#include "external.h"
#include "gpu.h"
#include "processor.h"
#include "widen.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <type_traits>

namespace libris {
namespace fs = std::filesystem;

namespace {

// The oldest API that has all that libris calls: a library may be older than the headers, and newer
// ones speak it too.
constexpr uint32_t kApiVersion = 20;
static_assert(ORT_API_VERSION >= kApiVersion, "libris needs ONNX Runtime's headers from 1.20 on");

// A log that nobody sees: errors come as statuses, and a library does not print.
void ORT_API_CALL swallow(void *, OrtLoggingLevel, const char *, const char *, const char *,
                          const char *) {}

// From 1.31 on ONNX Runtime looks up a host of its makers' and keeps a number of the machine in the
// user's home, unless this is set before its first environment. It is set as libris is loaded, when
// a program has one thread as a rule: no other thread may read the environment meanwhile.
[[gnu::constructor]] void keep_to_this_machine() { setenv("ORT_DISABLE_TELEMETRY", "1", 0); }

// The process's one environment. It is never destroyed: at exit other threads may still run graphs.
Ort::Env &environment() {
    static Ort::Env *const env = [] {
        const OrtApi *api = OrtGetApiBase()->GetApi(kApiVersion);
        if (api == nullptr) {
            throw Error(RIS_ERROR_ENGINE, "this ONNX Runtime is " + onnxruntime_version() +
                                              ", libris needs 1." + std::to_string(kApiVersion) +
                                              " or later; give it a newer libonnxruntime.so");
        }
        Ort::InitApi(api);
        return new Ort::Env(ORT_LOGGING_LEVEL_ERROR, "ris", swallow, nullptr);
    }();
    return *env;
}

// An error's first line, without the places in ONNX Runtime's source that it passed.
std::string reason(const std::string &text) {
    std::string line = text.substr(0, text.find('\n'));
    // [ONNXRuntimeError] : number : kind : sentence
    const size_t tag = line.rfind("[ONNXRuntimeError] : ");
    const size_t number = tag == std::string::npos ? tag : line.find(" : ", tag);
    const size_t kind = number == std::string::npos ? number : line.find(" : ", number + 3);
    const size_t sentence = kind == std::string::npos ? kind : line.find(" : ", kind + 3);
    if (sentence != std::string::npos) line.erase(0, sentence + 3);
    while (!line.empty() && line.back() == ' ') line.pop_back();
    return line;
}

const char *onnxruntime_name(Provider provider) {
    switch (provider) {
        case Provider::cuda: return "CUDAExecutionProvider";
        case Provider::tensorrt: return "TensorrtExecutionProvider";
        case Provider::cpu: break;
    }
    return "CPUExecutionProvider";
}

void require_available(Provider provider) {
    const std::vector<std::string> available = Ort::GetAvailableProviders();
    const char *const wanted = onnxruntime_name(provider);
    if (std::find(available.begin(), available.end(), wanted) != available.end()) return;

    std::string all;
    for (const std::string &name : available) all += (all.empty() ? "" : ", ") + name;
    const std::string found = std::string("this ONNX Runtime has no ") + wanted + " (it has " + all;
    throw Error(RIS_ERROR_ENGINE, found + "); give libris a libonnxruntime.so that was built with "
                                          "it, or ask for providers \"cpu\"");
}

using Settings = std::map<std::string, std::string>;

template <class Options, class Update>
void update(Options *options, const Settings &settings, Update call) {
    std::vector<const char *> keys, values;
    for (const auto &[key, value] : settings) {
        keys.push_back(key.c_str());
        values.push_back(value.c_str());
    }
    Ort::ThrowOnError(call(options, keys.data(), values.data(), keys.size()));
}

void append_cuda(Ort::SessionOptions &session, int device_id) {
    const OrtApi &api = Ort::GetApi();
    OrtCUDAProviderOptionsV2 *made = nullptr;
    Ort::ThrowOnError(api.CreateCUDAProviderOptions(&made));
    using Held =
        std::unique_ptr<OrtCUDAProviderOptionsV2, decltype(api.ReleaseCUDAProviderOptions)>;
    const Held cuda(made, api.ReleaseCUDAProviderOptions);
    // TF32 is off: what is FP32 is so for its precision. The exhaustive search takes a minute at
    // full size.
    update(made,
           {{"device_id", std::to_string(device_id)},
            {"use_tf32", "0"},
            {"cudnn_conv_algo_search", "HEURISTIC"},
            {"arena_extend_strategy", "kSameAsRequested"}},
           api.UpdateCUDAProviderOptions);
    session.AppendExecutionProvider_CUDA_V2(*cuda);
}

// The sizes of a graph's inputs as the TensorRT provider takes them, for `expressions` of them in
// rows of `tokens`.
std::string profile(const Stage &stage, int expressions, int tokens) {
    std::string all;
    for (const TensorSpec &spec : stage.inputs) {
        std::string sizes;
        for (const int64_t size : real_shape(spec, expressions, tokens)) {
            sizes += (sizes.empty() ? "" : "x") + std::to_string(size);
        }
        all += (all.empty() ? "" : ",") + spec.name + ":" + sizes;
    }
    return all;
}

Settings tensorrt_settings(const Stage &stage, const Text &text, const EngineOptions &options) {
    const std::string one = profile(stage, 1, text.row_length(0));
    const std::string most = profile(stage, options.max_expressions, text.max_tokens);
    Settings settings = {{"device_id", std::to_string(options.device_id)},
                         {"trt_profile_min_shapes", one},
                         {"trt_profile_opt_shapes", one},
                         {"trt_profile_max_shapes", most}};
    if (!options.engine_cache.empty()) {
        settings["trt_timing_cache_enable"] = "1";
        settings["trt_timing_cache_path"] = options.engine_cache;
    }
    return settings;
}

void append_tensorrt(Ort::SessionOptions &session, const Settings &settings) {
    const OrtApi &api = Ort::GetApi();
    OrtTensorRTProviderOptionsV2 *made = nullptr;
    Ort::ThrowOnError(api.CreateTensorRTProviderOptions(&made));
    using Held =
        std::unique_ptr<OrtTensorRTProviderOptionsV2, decltype(api.ReleaseTensorRTProviderOptions)>;
    const Held tensorrt(made, api.ReleaseTensorRTProviderOptions);
    update(made, settings, api.UpdateTensorRTProviderOptions);
    session.AppendExecutionProvider_TensorRT_V2(*tensorrt);
}

// The bytes up to which weights in 8 bits are widened when a session is opened.
constexpr double kMostWidened = 4.0 * (1 << 30);

// Weights in 8 or 4 bits: left to itself, ONNX Runtime rounds to INT8 what they are multiplied
// with. Its kernel for 8 bits that does not is slow, so those weights are widened: once, or in
// each run where they are many.
void keep_activations(Ort::SessionOptions &session, const Stage &stage) {
    if (stage.weights == "int4") {
        session.AddConfigEntry("session.qdq_matmulnbits_accuracy_level", "1");
    } else if (stage.weights == "int8" && stage.narrow_weights * 4 > kMostWidened) {
        session.AddConfigEntry("optimization.disable_specified_optimizers",
                               "QDQSelectorActionTransformer");
    } else if (stage.weights == "int8") {
        session.AddConfigEntry("session.disable_quant_qdq", "1");
    }
}

// tensorrt: the TensorRT provider's settings; used with that provider alone.
Ort::SessionOptions session_options(Provider provider, const EngineOptions &options,
                                    const Settings &tensorrt, const Stage &stage) {
    Ort::SessionOptions session;
    session.SetLogSeverityLevel(ORT_LOGGING_LEVEL_ERROR);

    // planning one block for all activations doubles SAM's memory at full size
    session.DisableMemPattern();
    // idle threads of one graph would spin on the cores that the next graph and the host need
    session.AddConfigEntry("session.force_spinning_stop", "1");
    // INT8 products that do not overflow; slower ones, which it would take with VNNI too. Of narrow
    // weights there are none, and it would break their groups
    if (stage.weights.empty() && !has_vnni()) {
        session.AddConfigEntry("session.x64quantprecision", "1");
    }
    session.SetIntraOpNumThreads(options.threads);
    if (provider == Provider::cpu) {
        keep_activations(session, stage);
        return session;
    }

    if (options.strict) session.AddConfigEntry("session.disable_cpu_ep_fallback", "1");
    if (provider == Provider::tensorrt) append_tensorrt(session, tensorrt);
    append_cuda(session, options.device_id);  // after TensorRT: what that does not take
    return session;
}

// Where a graph's data files really lie, by the names that it has for them.
using Places = std::map<std::string, fs::path>;

Places places_of(const std::set<std::string> &names, const fs::path &folder) {
    Places places;
    for (const std::string &name : names) places[name] = fs::canonical(folder / name);
    return places;
}

// `folder` where the files lie in it or below, as ONNX Runtime wants it. Where links lead out of
// it, the folder that all of them lie in or below.
fs::path folder_above(const Places &places, const fs::path &folder) {
    const auto has_all = [&](const fs::path &above) {
        return std::all_of(places.begin(), places.end(), [&](const auto &place) {
            const fs::path &file = place.second;
            return std::mismatch(above.begin(), above.end(), file.begin(), file.end()).first ==
                   above.end();
        });
    };
    if (has_all(folder)) return folder;
    fs::path above = places.begin()->second.parent_path();
    while (!has_all(above)) above = above.parent_path();
    return above;
}

ONNXTensorElementDataType element_type(Dtype dtype) {
    switch (dtype) {
        case Dtype::float16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
        case Dtype::int32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
        case Dtype::float32: break;
    }
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

}  // namespace

const char *provider_name(Provider provider) {
    switch (provider) {
        case Provider::cuda: return "cuda";
        case Provider::tensorrt: return "tensorrt";
        case Provider::cpu: break;
    }
    return "cpu";
}

std::vector<int64_t> real_shape(const TensorSpec &spec, int64_t expressions, int64_t tokens) {
    std::vector<int64_t> sizes;
    for (const int size : spec.shape) {
        sizes.push_back(size == TensorSpec::images        ? 1
                        : size == TensorSpec::expressions ? expressions
                        : size == TensorSpec::tokens      ? tokens
                                                          : size);
    }
    return sizes;
}

Providers parse_providers(const std::string &text) {
    const auto provider = [&](const std::string &name) {
        for (const Provider one : {Provider::cpu, Provider::cuda, Provider::tensorrt}) {
            if (name == provider_name(one)) return one;
        }
        throw Error(RIS_ERROR_ARGUMENT, "options.providers: there is no provider " +
                                            in_quotes(name) + "; there are cpu, cuda and tensorrt");
    };

    Providers asked;
    // "cuda:1": all graphs that run on a GPU run on that one
    const auto numbered = [&](const std::string &name) {
        const size_t colon = name.find(':');
        const Provider found = provider(name.substr(0, colon));
        if (colon == std::string::npos) return found;
        const std::string number = name.substr(colon + 1);
        const bool digits = !number.empty() && number.size() <= 4 &&
                            number.find_first_not_of("0123456789") == std::string::npos;
        if (!digits || found == Provider::cpu || std::stoi(number) > kLastDevice) {
            throw Error(RIS_ERROR_ARGUMENT, "options.providers: " + in_quotes(name) +
                                                " names no GPU; write cuda:1 for the second one");
        }
        asked.device_id = std::stoi(number);
        return found;
    };
    for (size_t start = 0, end = 0; end != std::string::npos; start = end + 1) {
        end = text.find(',', start);
        const std::string part = text.substr(start, end == std::string::npos ? end : end - start);
        const size_t equals = part.find('=');
        if (equals != std::string::npos) {
            asked.exceptions.emplace_back(part.substr(0, equals),
                                          provider(part.substr(equals + 1)));
        } else if (start == 0) {
            asked.all = numbered(part);
        } else {
            throw Error(RIS_ERROR_ARGUMENT, "options.providers: " + in_quotes(part) +
                                                " names no graph; write NAME=" + cut(part, 80) +
                                                " for an exception");
        }
    }
    return asked;
}

std::vector<Provider> providers_of(const Providers &asked, const Manifest &manifest) {
    const std::vector<Stage> &stages = manifest.stages;
    std::vector<Provider> all(stages.size(), asked.all);
    for (const auto &[name, provider] : asked.exceptions) {
        if (const Stage *const stage = named(stages, name)) {
            all[static_cast<size_t>(stage - stages.data())] = provider;
            continue;
        }
        std::string names;
        for (const Stage &stage : stages) names += (names.empty() ? "" : ", ") + stage.name;
        throw Error(RIS_ERROR_ARGUMENT, "options.providers: there is no graph " + in_quotes(name) +
                                            "; there are " + cut(names, 400));
    }
    return all;
}

void check_engine_cache(const std::string &folder, const std::vector<Provider> &providers) {
    if (folder.empty()) return;
    if (std::find(providers.begin(), providers.end(), Provider::tensorrt) == providers.end()) {
        throw Error(RIS_ERROR_ARGUMENT,
                    "options.engine_cache is for the provider tensorrt, which runs no graph here");
    }
    std::error_code error;
    if (!std::filesystem::is_directory(folder, error)) {
        throw Error(RIS_ERROR_ARGUMENT, "options.engine_cache: there is no folder " +
                                            in_quotes(folder, 400) + "; make it first");
    }
}

void start_onnxruntime() { environment(); }

std::string onnxruntime_version() { return OrtGetApiBase()->GetVersionString(); }

Session::Session(const Bundle &bundle, const Stage &stage, Provider provider,
                 const EngineOptions &options)
    : name_(stage.name), inputs_(stage.inputs), outputs_(stage.outputs) {
    require_available(provider);
    if (provider == Provider::tensorrt && stage.sampling == "native") {
        throw Error(RIS_ERROR_ENGINE,
                    name_ + " samples with GridSample, which is wrong in several versions of "
                            "TensorRT; export the bundle with --grid-sample gather");
    }

    try {
        const Settings tensorrt = provider == Provider::tensorrt
                                      ? tensorrt_settings(stage, bundle.manifest.host.text, options)
                                      : Settings{};
        if (provider != Provider::tensorrt || options.engine_cache.empty()) {
            const bool widen = provider == Provider::cpu && stage.precision == "fp16";
            open_graph(bundle.file(stage.file), widen,
                       session_options(provider, options, tensorrt, stage));
            return;
        }

        std::string built_for = "onnxruntime " + onnxruntime_version();
        built_for += "\n" + gpu_key(options.device_id);
        for (const auto &[key, value] : tensorrt) built_for += "\n" + key + "=" + value;
        const ContextModel context(options.engine_cache, stage, built_for);
        if (context.is_whole()) {
            try {
                open(context.path(), session_options(provider, options, tensorrt, stage));
                context_ = "read";
                return;
            } catch (const std::exception &) {
                // another GPU or TensorRT, or part of a graph: compiled again
                session_ = Ort::Session(nullptr);
            }
        }

        context.discard();
        Ort::SessionOptions writing = session_options(provider, options, tensorrt, stage);
        writing.AddConfigEntry("ep.context_enable", "1");
        writing.AddConfigEntry("ep.context_file_path", context.path().c_str());
        // the engine inside the file, whose hash is kept
        writing.AddConfigEntry("ep.context_embed_mode", "1");
        open_graph(bundle.file(stage.file), false, std::move(writing));
        context.seal();
        context_ = context.is_whole() ? "written" : "";
    } catch (const Ort::Exception &error) {
        const char *const gpu = provider == Provider::cpu
                                    ? ""
                                    : "; check the GPU's driver and that CUDA's libraries are "
                                      "found, or ask for providers \"cpu\"";
        throw Error(RIS_ERROR_ENGINE,
                    name_ + ": ONNX Runtime cannot open " + bundle.file(stage.file) + " on " +
                        provider_name(provider) + ": " + reason(error.what()) + gpu);
    }
}

void Session::open(const std::string &path, const Ort::SessionOptions &options) {
    session_ = Ort::Session(environment(), path.c_str(), options);
    check_names(path);
}

void Session::open_graph(const std::string &path, bool widen, Ort::SessionOptions options) {
    std::string onnx = read_file(path, "graph", kLargestGraph);
    const fs::path folder = fs::canonical(fs::path(path).parent_path());
    const Places places = places_of(data_files(onnx, path), folder);
    const fs::path above = folder_above(places, folder);
    if (above == folder && !widen) {
        onnx = std::string();  // ONNX Runtime maps the file itself
        open(path, options);
        return;
    }

    if (above != folder) {
        onnx = with_data_files(onnx, path, [&](const std::string &name) {
            return places.at(name).lexically_relative(above).string();
        });
    }
    if (widen) onnx = widened(onnx, path);
    // the graph comes from memory: ONNX Runtime must be told where its weights are
    options.AddConfigEntry("session.model_external_initializers_file_folder_path", above.c_str());
    session_ = Ort::Session(environment(), onnx.data(), onnx.size(), options);
    check_names(path);
}

void Session::check_names(const std::string &path) const {
    const Ort::AllocatorWithDefaultOptions allocator;
    std::vector<std::string> names, expected;
    for (size_t i = 0; i < session_.GetInputCount(); ++i) {
        names.emplace_back(session_.GetInputNameAllocated(i, allocator).get());
    }
    for (size_t i = 0; i < session_.GetOutputCount(); ++i) {
        names.emplace_back(session_.GetOutputNameAllocated(i, allocator).get());
    }
    for (const TensorSpec &spec : inputs_) expected.push_back(spec.name);
    for (const TensorSpec &spec : outputs_) expected.push_back(spec.name);
    std::sort(names.begin(), names.end());
    std::sort(expected.begin(), expected.end());
    if (names != expected) {
        throw Error(RIS_ERROR_BUNDLE, name_ + ": " + path +
                                          " has not the inputs and outputs that the manifest says; "
                                          "export the bundle again");
    }
}

std::vector<Ort::Value> Session::run(const std::vector<const Ort::Value *> &values,
                                     int64_t expressions) const {
    std::vector<const char *> input_names, output_names;
    std::vector<const OrtValue *> inputs;
    for (const TensorSpec &spec : inputs_) input_names.push_back(spec.name.c_str());
    for (const Ort::Value *value : values) inputs.push_back(*value);
    for (const TensorSpec &spec : outputs_) output_names.push_back(spec.name.c_str());

    std::vector<Ort::Value> results;
    results.reserve(outputs_.size());
    std::vector<OrtValue *> outputs(outputs_.size(), nullptr);
    try {
        Ort::ThrowOnError(Ort::GetApi().Run(session_, nullptr, input_names.data(), inputs.data(),
                                            inputs.size(), output_names.data(), output_names.size(),
                                            outputs.data()));
    } catch (const Ort::Exception &error) {
        throw Error(RIS_ERROR_ENGINE, name_ + ": ONNX Runtime failed: " + reason(error.what()));
    }
    for (OrtValue *output : outputs) results.emplace_back(output);

    for (size_t i = 0; i < results.size(); ++i) {
        const auto info = results[i].GetTensorTypeAndShapeInfo();
        if (info.GetElementType() != element_type(outputs_[i].dtype) ||
            info.GetShape() != real_shape(outputs_[i], expressions)) {
            throw Error(RIS_ERROR_BUNDLE, name_ + ": the output " + outputs_[i].name +
                                              " has not the shape that the manifest says; "
                                              "export the bundle again");
        }
    }
    return results;
}

Ort::Value tensor(const Array &array) {
    static const Ort::MemoryInfo memory =
        Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    return std::visit(
        [&](const auto &values) {
            using T = typename std::decay_t<decltype(values)>::value_type;
            // graphs read their inputs alone
            T *const data = const_cast<T *>(values.data());
            return Ort::Value::CreateTensor<T>(memory, data, values.size(), array.shape.data(),
                                               array.shape.size());
        },
        array.data);
}

Array copied(const Ort::Value &value) {
    const auto info = value.GetTensorTypeAndShapeInfo();
    const auto copy = [&](const auto *from) {
        using T = std::decay_t<decltype(*from)>;
        return Array{info.GetShape(), std::vector<T>(from, from + info.GetElementCount())};
    };
    switch (info.GetElementType()) {
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32: return copy(value.GetTensorData<int32_t>());
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
            return copy(value.GetTensorData<Ort::Float16_t>());
        default: return copy(value.GetTensorData<float>());
    }
}

}  // namespace libris
