// ONNX Runtime: one environment, a session for each graph. No provider is replaced unseen.
#pragma once

#include "bundle.h"

#define ORT_API_MANUAL_INIT  // so that a library that is too old is an error, not a crash
#include <onnxruntime_cxx_api.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

namespace libris {

enum class Provider { cpu, cuda, tensorrt };
const char *provider_name(Provider provider);

struct EngineOptions {
    std::array<Provider, kStages> providers;
    std::string engine_cache;
    int device_id, threads, max_expressions;
    bool strict;
};

// "cuda,text_encoder=cpu" -> a provider for each graph. Throws Error for words it does not know.
std::array<Provider, kStages> parse_providers(const std::string &text);

// Throws Error where there is no such folder, or no graph would use it. "": none was asked for.
void check_engine_cache(const std::string &folder, const std::array<Provider, kStages> &providers);

// Call it before anything else of ONNX Runtime, also before an empty Ort::Value. Throws Error where
// the library is too old.
void start_onnxruntime();

std::string onnxruntime_version();

// One graph. ONNX Runtime allows `run` from several threads at once.
class Session {
public:
    // Throws Error where the provider is not there or does not start.
    Session(const Bundle &bundle, Stage stage, const EngineOptions &options);

    using Feeds = std::vector<std::pair<const char *, const Ort::Value *>>;

    // The outputs in the manifest's order, float32. Their shapes are checked against the manifest,
    // for one image and `expressions`.
    std::vector<Ort::Value> run(const Feeds &feeds, int64_t expressions) const;

    // "read" or "written" where an EPContext model was, else "".
    const char *context() const { return context_; }

private:
    // The file as it is.
    void open(const std::string &path, const Ort::SessionOptions &options);
    // `open` of a bundle's graph, whose weights may lie elsewhere, behind links. widen: computing
    // in FP32.
    void open_graph(const std::string &path, bool widen, Ort::SessionOptions options);
    void check_names(const std::string &path) const;

    std::string name_;
    std::vector<TensorSpec> inputs_, outputs_;
    const char *context_ = "";
    mutable Ort::Session session_{nullptr};
};

// The sizes of an input or output, for one image and `expressions`.
std::vector<int64_t> real_shape(const TensorSpec &spec, int64_t expressions);

// A tensor over memory of the caller's, which must outlive it.
template <class T>
Ort::Value tensor(const std::vector<T> &values, const std::vector<int64_t> &shape) {
    static const Ort::MemoryInfo memory =
        Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    // graphs read their inputs alone
    T *const data = const_cast<T *>(values.data());
    return Ort::Value::CreateTensor<T>(memory, data, values.size(), shape.data(), shape.size());
}

}  // namespace libris
