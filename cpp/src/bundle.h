// The bundle: a folder with a manifest, as ris-export writes it (runtime/manifest.schema.json).
#pragma once

#include "interpolate.h"
#include "masks.h"

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace libris {

constexpr int kFormatVersion = 2;  // the newest that is read

// The types of values. What the host gives or takes is never float16.
enum class Dtype { float32, float16, int32 };

// A value: an array that the host or one of the stages gives, and stages take by its name.
struct TensorSpec {
    static constexpr int images = -1, expressions = -2, tokens = -3;
    std::string name;
    std::string value;  // that an input takes; an output's is its name
    Dtype dtype;
    std::vector<int> shape;  // sizes, or a kind of axis whose length differs from call to call
};

// The item of that name; null where there is none.
template <class Item>
const Item *named(const std::vector<Item> &items, const std::string &name) {
    for (const Item &item : items) {
        if (item.name == name) return &item;
    }
    return nullptr;
}

// One ONNX graph.
struct Stage {
    std::string name;
    std::string file;  // relative to the bundle
    // for its user's eyes: it is in the graph
    std::string precision;
    std::string sampling;  // "native", "gather" or "" where nothing is sampled
    std::map<std::string, std::string> sha256;
    std::vector<TensorSpec> inputs, outputs;
    double operations = 0;  // of one image and one expression; 0 where they were not counted
    std::string weights;    // what matrices are stored in, "int8" or "int4"; "" for the precision
    double narrow_weights = 0;  // how many weights are stored so

    // Runs for each question; else once an image.
    bool is_of_questions() const;
};

// A square that the host makes, float32 [1, 3, size, size]. fit: "square" changes the aspect ratio,
// "letterbox" keeps it and has zeros at the right and below; "crop" is the picture's middle.
struct HostImage {
    std::string name;
    std::string of;  // "picture", or the image whose 8-bit levels it is made of
    std::string fit;
    int size;
    Interpolation filter;
    bool antialias;
    int levels;  // what white is before mean and std: 1 or 255
    std::array<float, 3> mean, std;

    bool is_of_picture() const { return of == "picture"; }
    bool is_letterbox() const { return fit == "letterbox"; }
    bool is_crop() const { return fit == "crop"; }

    // What a picture of that size has inside the square.
    Size fitted(Size picture) const {
        return is_letterbox() ? letterbox_size(picture, size) : Size{size, size};
    }
};

// A text that an expression stands in, when a model is asked.
struct Form {
    std::string before, behind;
    bool lower;  // whether the expression is lower-cased
};

// How expressions become token ids. mask: "" where no stage takes one. end_id: what a row that was
// cut ends with, -1 for what stands there. lengths: those that the rows of a call may have,
// ascending up to max_tokens; none: all rows have max_tokens.
struct Text {
    std::string tokenizer;
    int max_tokens, pad_id;
    std::string ids, mask;
    int end_id = -1;
    std::map<std::string, Form> forms;  // none: an expression is asked as it is
    std::string form;                   // where the user names none; "" where there are none
    std::vector<int> lengths;

    // The length of the rows of a call whose longest has so many tokens.
    int row_length(size_t tokens) const;

    // The form of a name, "" for the model's own choice; null where expressions are asked as they
    // are. Throws Error for one that is not there.
    const Form *form_named(const std::string &name) const;
};

// The table of a model that asks by category: its files, and the value that rows of it become.
struct Categories {
    std::string names, features, value;
};

// Maps [n, channels, h, w] of a stage that the host resizes for the next ones.
struct Resize {
    std::string name, of;
    int size;
    Interpolation interpolation;
};

// Random numbers for each expression, of the logistic distribution.
struct Drawn {
    std::string name;
    std::vector<int> shape;  // without the axis of the expressions
    int seed;                // where the user names none
};

struct Host {
    std::vector<HostImage> images;
    Text text;
    std::string image_index;  // "" where no stage takes it
    std::optional<Categories> categories;
    std::vector<Resize> resizes;
    std::vector<Drawn> drawn;  // in the order of their names
};

struct Manifest {
    int format_version;
    std::string family;
    std::string source_kind;
    bool trained;
    std::string preset;
    std::string precision;
    Host host;
    std::vector<Stage> stages;                  // in the order in which they run
    std::string mask_logits, no_target_logits;  // values; "" where the model does not decide that
    MaskRule rule;
    std::string letterbox_of;                  // an image; "" where masks are of no letterbox
    std::string mean_of;                       // what draws are averaged at; "": the logits
    std::string golden;                        // Python's own, checked with the rest
    std::map<std::string, std::string> files;  // sha256 of what is no graph

    // How many expressions go through the graphs at once where the user does not say: eight, or
    // one of a model that needs gigabytes for each, as in Python's runtime/cost.py.
    int expressions_at_once() const;
};

struct Bundle {
    std::string path;  // absolute: it holds where the process changes its folder
    Manifest manifest;

    std::string file(const std::string &name) const { return path + "/" + name; }
};

// Reads and checks the manifest. Throws Error with all that is wrong with it.
Bundle read_bundle(const std::string &path);

// Checks the files: present and, with `verify`, unchanged since the export. Throws Error with all
// that are missing or damaged.
void check_files(const Bundle &bundle, bool verify);

// The most bytes that are read of a JSON file, of a table of features, and of an ONNX file, which
// protobuf ends at 2 GB.
constexpr uintmax_t kLargestText = uintmax_t{64} << 20;
constexpr uintmax_t kLargestTable = uintmax_t{256} << 20;
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
