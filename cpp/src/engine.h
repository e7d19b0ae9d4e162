// ONNX Runtime: one environment, a session for each stage's graph. No provider is replaced unseen.
#pragma once

#include "bundle.h"

#define ORT_API_MANUAL_INIT  // so that a library that is too old is an error, not a crash
#include <onnxruntime_cxx_api.h>

#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace libris {

enum class Provider { cpu, cuda, tensorrt };
const char *provider_name(Provider provider);

constexpr int kLastDevice = 1023;

// What runs the graphs, and exceptions by the names of stages.
struct Providers {
    Provider all = Provider::cpu;
    int device_id = -1;  // of "cuda:1"; -1: none was named
    std::vector<std::pair<std::string, Provider>> exceptions;
};

// "cuda,NAME=cpu" or "cuda:1,NAME=cpu". Throws Error for words it does not know.
Providers parse_providers(const std::string &text);

// A provider for each stage. Throws Error where an exception is for none of them.
std::vector<Provider> providers_of(const Providers &asked, const Manifest &manifest);

struct EngineOptions {
    std::vector<Provider> providers;  // of each stage
    std::string engine_cache;
    int device_id, threads, max_expressions;
    bool strict;
};

// Throws Error where there is no such folder, or no graph would use it. "": none was asked for.
void check_engine_cache(const std::string &folder, const std::vector<Provider> &providers);

// Call it before anything else of ONNX Runtime, also before an empty Ort::Value. Throws Error where
// the library is too old.
void start_onnxruntime();

std::string onnxruntime_version();

// One graph. ONNX Runtime allows `run` from several threads at once.
class Session {
public:
    // Throws Error where the provider is not there or does not start.
    Session(const Bundle &bundle, const Stage &stage, Provider provider,
            const EngineOptions &options);

    // Inputs and outputs are in the manifest's order. The outputs' kinds and shapes are checked
    // against the manifest, for one image and `expressions`.
    std::vector<Ort::Value> run(const std::vector<const Ort::Value *> &values,
                                int64_t expressions) const;

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

// The sizes of an input or output, for one image and `expressions`. tokens: of a row; no output has
// that axis.
std::vector<int64_t> real_shape(const TensorSpec &spec, int64_t expressions, int64_t tokens = 0);

// An array in memory of its own, which is no session's.
struct Array {
    std::vector<int64_t> shape;
    std::variant<std::vector<float>, std::vector<Ort::Float16_t>, std::vector<int32_t>> data;
};

// A tensor over an array's memory, which must outlive it.
Ort::Value tensor(const Array &array);

// A copy of a tensor that a session gave.
Array copied(const Ort::Value &value);

}  // namespace libris
