// The steps inside libris behind plain C functions, so that Python can compare each with its own.
#include "context.h"
#include "drawn.h"
#include "error.h"
#include "gpu.h"
#include "image.h"
#include "interpolate.h"
#include "masks.h"
#include "pictures.hpp"
#include "processor.h"
#include "sha256.h"
#include "structs.h"
#include "tokenizer.h"
#include "trust.h"
#include "widen.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

using namespace libris;

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void test_resize_maps(const float *in, size_t maps, int h, int w, int height, int width,
                             int bicubic, int align_corners, float *out) {
    const auto mode = bicubic != 0 ? Interpolation::bicubic : Interpolation::bilinear;
    const std::vector<float> resized =
        resize_maps(in, maps, h, w, height, width, mode, align_corners != 0);
    std::copy(resized.begin(), resized.end(), out);
}

EXPORT void test_resize_pillow(const uint8_t *rgb, int w, int h, size_t stride, int width,
                               int height, int bicubic, uint8_t *out) {
    const auto filter = bicubic != 0 ? Interpolation::bicubic : Interpolation::bilinear;
    const std::vector<uint8_t> resized = resize_pillow({rgb, w, h, stride}, width, height, filter);
    std::copy(resized.begin(), resized.end(), out);
}

// One of the host's images, by the manifest of a bundle.
EXPORT void test_prepare(const char *bundle, const char *name, const uint8_t *rgb, int w, int h,
                         size_t stride, float *out) {
    const std::vector<HostImage> wanted = read_bundle(bundle).manifest.host.images;
    const std::vector<std::vector<float>> images = prepare_images({rgb, w, h, stride}, wanted);
    for (size_t i = 0; i < wanted.size(); ++i) {
        if (wanted[i].name == name) std::copy(images[i].begin(), images[i].end(), out);
    }
}

// A mask, and its score.
EXPORT double test_mask(const float *logits, int h, int w, int height, int width,
                        const MaskRule *rule, uint8_t *out) {
    const std::vector<uint8_t> mask = mask_from_logits(logits, h, w, {height, width}, *rule);
    std::copy(mask.begin(), mask.end(), out);
    return mask_score(logits, h, w, {height, width}, *rule);
}

EXPORT int test_expressions_at_once(const char *bundle) {
    return read_bundle(bundle).manifest.expressions_at_once();
}

EXPORT void test_draw(int count, uint64_t seed, uint64_t number, uint64_t place, float *out) {
    const std::vector<float> numbers = draw({"noise", {count}, 0}, seed, number, place);
    std::copy(numbers.begin(), numbers.end(), out);
}

EXPORT void test_sha256(const char *path, char *hex) {
    std::strcpy(hex, sha256_of_file(path).c_str());
}

// The graph `path` computing in FP32: writes at most `room` bytes of it and returns how many it
// has, 0 where it is no ONNX file.
EXPORT size_t test_widened(const char *path, uint8_t *out, size_t room) {
    try {
        const std::string onnx = widened(read_file(path, "graph"), path);
        std::memcpy(out, onnx.data(), std::min(onnx.size(), room));
        return onnx.size();
    } catch (const Error &) {
        return 0;
    }
}

// What a compiled engine depends on of a GPU; `key` gets it.
EXPORT void test_gpu_key(int device, char *key) { std::strncpy(key, gpu_key(device).c_str(), 999); }

// What becomes of an EPContext model in `folder`: 1 where it is whole. `action` 's' seals it first,
// 'd' discards it.
EXPORT int test_context(const char *folder, const char *graph_hash, const char *built_for,
                        char action, char *path) {
    Stage stage;
    stage.name = "fusion";
    stage.sha256["graphs/fusion.onnx"] = graph_hash;
    const ContextModel context(folder, stage, built_for);
    if (action == 's') context.seal();
    if (action == 'd') context.discard();
    std::strcpy(path, context.path().c_str());
    return context.is_whole() ? 1 : 0;
}

// A picture file as upright RGB, whose bytes `rgb` gets, at most `room` of them, and its width and
// height `size`. message: what is wrong with it, or "".
EXPORT void test_picture(const char *path, uint8_t *rgb, size_t room, int *size, char *message) {
    *message = '\0';
    try {
        const pictures::Picture picture = pictures::read(path);
        size[0] = picture.width;
        size[1] = picture.height;
        std::copy_n(picture.rgb.begin(), std::min(room, picture.rgb.size()), rgb);
    } catch (const std::exception &error) {
        std::strncpy(message, error.what(), 999);
    }
}

// A struct of ris.h as a later libris may have it.
struct Grown {
    size_t struct_size;
    double old;
    int32_t newer, newest;
};

// What a library that has the grown struct reads of a caller's `size` bytes, which are all 0:
// `newer`, whose default is 7, or -1 where it refuses. The first version ended behind `old`.
// written: how many bytes it writes to such a caller.
EXPORT int test_grown_struct(size_t size, size_t *written) {
    std::vector<unsigned char> bytes(std::max(size, sizeof(Grown)), 0);
    auto *const theirs = reinterpret_cast<Grown *>(bytes.data());
    theirs->struct_size = size;
    try {
        const Grown read =
            read_struct<Grown>(theirs, {sizeof(Grown), 1.5, 7, 7}, offsetof(Grown, newer), "grown");
        std::fill(bytes.begin() + sizeof(size_t), bytes.end(), static_cast<unsigned char>(0xff));
        write_struct<Grown>(theirs, {sizeof(Grown), 0, 0, 0});
        *written = static_cast<size_t>(
            std::find(bytes.begin() + sizeof(size_t), bytes.end(), 0xff) - bytes.begin());
        return theirs->struct_size == size ? read.newer : -2;
    } catch (const Error &) {
        return -1;
    }
}

EXPORT double test_cpu_quota(const char *root) { return cpu_quota(root); }

EXPORT int test_usable_cores(const char *root) { return usable_cores(root); }

// This user's key, in hexadecimal; empty where it is refused.
EXPORT void test_user_key(char *hex) {
    try {
        std::strcpy(hex, hex_of(user_key()).c_str());
    } catch (const Error &) {
        *hex = '\0';
    }
}

// The folders for the key, a line each.
// The lower-cased text without the blanks around it, as bytes that end with a 0.
EXPORT void test_lower(const char *text, char *out, size_t room) {
    std::strncpy(out, lower_cased(stripped(text)).c_str(), room - 1);
}

EXPORT void test_state_folders(char *lines, size_t room) {
    std::string all;
    for (const std::string &folder : state_folders()) all += folder + "\n";
    std::strncpy(lines, all.c_str(), room - 1);
}

// `count` texts, one after the other, text i ending at ends[i]; their ids, padded. A text
// that is refused gives -1s. notes: a line for each note, after its text's number; at most `room`
// bytes. A tokenizer that is refused gives -1s alone, and what is wrong with it in place of notes.
EXPORT void test_tokenize(const char *path, int max_tokens, int pad_id, int end_id,
                          const char *texts, const size_t *ends, size_t count, int32_t *ids,
                          char *notes, size_t room) {
    std::string lines;
    std::fill(ids, ids + count * static_cast<size_t>(max_tokens), -1);
    try {
        const TokenizerFile file = parse_tokenizer(read_file(path, "tokenizer"), path);
        const Tokenizer tokenizer(file, path, max_tokens, pad_id, end_id);
        for (size_t i = 0, start = 0; i < count; start = ends[i], ++i, ids += max_tokens) {
            try {
                const Tokens tokens = tokenizer({texts + start, ends[i] - start});
                std::fill(std::copy(tokens.ids.begin(), tokens.ids.end(), ids), ids + max_tokens,
                          pad_id);
                const std::string number = std::to_string(i);
                for (const std::string &note : tokens.notes) lines += number + " " + note + "\n";
            } catch (const Error &error) {
                if (error.status == RIS_ERROR_BUNDLE) throw;
            }
        }
    } catch (const Error &error) {
        lines = std::string("refused: ") + error.what();
    }
    std::strncpy(notes, lines.c_str(), room - 1);
}
