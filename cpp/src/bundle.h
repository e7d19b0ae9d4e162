// The bundle: a folder with a manifest, as ris-export writes it (runtime/manifest.schema.json).
#pragma once

#include "interpolate.h"

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace libris {

constexpr int kFormatVersion = 1;

enum Stage { sam_image_encoder, clip_image_encoder, text_encoder, fusion, mask_decoder, kStages };
extern const std::array<const char *, kStages> kStageNames;

// A graph's input or output. shape: sizes, or a kind of batch axis.
struct TensorSpec {
    static constexpr int images = -1, expressions = -2;
    std::string name;
    bool is_int32;
    std::vector<int> shape;
};

struct Graph {
    std::string file;  // relative to the bundle
    // for its user's eyes: it is in the graph, whose inputs and outputs are float32
    std::string precision;
    std::string sampling;  // "native", "gather" or "" where nothing is sampled
    std::map<std::string, std::string> sha256;
    std::vector<TensorSpec> inputs, outputs;

    // The output `name`. Throws where the graph has none.
    const TensorSpec &output(const std::string &name) const;
};

// How an encoder's square is made: mean and std are of levels 0-255 for SAM, 0-1 for CLIP.
struct Square {
    int size;
    std::array<float, 3> mean, std;
};

struct Preprocess {
    Square sam, clip;
};

struct Manifest {
    std::string source_kind;
    bool trained;
    std::string preset;
    std::string precision;
    std::array<Graph, kStages> graphs;
    Preprocess preprocess;
    std::string tokenizer;
    std::string golden;  // Python's own, checked with the rest
    int max_tokens;
    int dense_grid, dense_target;
    Interpolation dense_interpolation;
    float threshold;
    bool no_target;
    // files of names and of features
    std::optional<std::pair<std::string, std::string>> categories;
    std::map<std::string, std::string> files;  // sha256 of what is no graph
};

struct Bundle {
    std::string path;  // absolute: it holds where the process changes its folder
    Manifest manifest;

    std::string file(const std::string &name) const { return path + "/" + name; }
};

// Reads the manifest and checks the files: present and, with `verify`, unchanged since the export.
// Throws Error with all that are missing or damaged.
Bundle open_bundle(const std::string &path, bool verify);

// The same check of the files alone.
void check_files(const Bundle &bundle, bool verify);

// The most bytes that are read of a text, and of an ONNX file, which protobuf ends at 2 GB.
constexpr uintmax_t kLargestText = uintmax_t{256} << 20;
constexpr uintmax_t kLargestGraph = uintmax_t{2} << 30;

// A whole file of at most `largest` bytes. Throws Error of `what` it is.
std::string read_file(const std::string &path, const char *what, uintmax_t largest = kLargestText);

// The category variant's text features, [rows, width], from the bytes of a float32 .npy file;
// `path` is for messages.
struct Features {
    size_t rows, width;
    std::vector<float> values;
};
Features parse_features(const std::string &data, const std::string &path);

}  // namespace libris
