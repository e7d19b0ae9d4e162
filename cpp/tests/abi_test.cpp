// The C ABI as a hostile caller and a busy one use it; run it in a sanitizer build too.
//
//     ris-test BUNDLE SCRATCH
#include "ris.hpp"

#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <thread>

namespace fs = std::filesystem;

namespace {

int failures = 0;

void expect(bool good, const std::string &what) {
    if (good) return;
    ++failures;
    std::cerr << "FAILED: " << what << "\n";
}

// The call has this status, and where it failed, a message with these words.
void expect_status(ris_status got, ris_status want, const std::string &words,
                   const std::string &what) {
    const std::string message = ris_last_error();
    expect(got == want, what + ": status " + std::to_string(got) + " instead of " +
                            std::to_string(want) + ": " + message);
    if (want == RIS_OK) return;
    expect(message.find(words) != std::string::npos,
           what + ": no \"" + words + "\" in: " + message);
    std::cout << what << ": " << message << "\n";
}

std::vector<std::uint8_t> picture(int width, int height, std::size_t stride) {
    std::vector<std::uint8_t> rgb(stride * static_cast<std::size_t>(height), 7);
    for (int y = 0; y < height; ++y) {
        for (int x = 0; x < 3 * width; ++x) {
            rgb[static_cast<std::size_t>(y) * stride + static_cast<std::size_t>(x)] =
                static_cast<std::uint8_t>((x * 5 + y * 3 + x * y / 7) & 255);
        }
    }
    return rgb;
}

std::vector<std::uint8_t> mask_of(const ris::Answer &answer) {
    const std::size_t pixels =
        static_cast<std::size_t>(answer.width) * static_cast<std::size_t>(answer.height);
    return {answer.mask, answer.mask + pixels};
}

void wrong_arguments(const std::string &bundle) {
    ris_model *model = nullptr;
    ris_scene *scene = nullptr;
    ris_result *result = nullptr;
    const char *json = nullptr;
    const char *expression = "left man";
    ris_answer answer = RIS_ANSWER_INIT;
    expect_status(ris_open(nullptr, nullptr, &model), RIS_ERROR_ARGUMENT, "bundle is NULL",
                  "open null path");
    expect_status(ris_open(bundle.c_str(), nullptr, nullptr), RIS_ERROR_ARGUMENT, "model is NULL",
                  "open null output");
    ris_options options = RIS_OPTIONS_INIT;
    options.struct_size = 0;
    expect_status(ris_open(bundle.c_str(), &options, &model), RIS_ERROR_ARGUMENT, "struct_size",
                  "options of size 0");
    options.struct_size = sizeof options - 1;
    expect_status(ris_open(bundle.c_str(), &options, &model), RIS_ERROR_ARGUMENT, "struct_size",
                  "options cut short");
    struct {
        ris_options options = RIS_OPTIONS_INIT;
        std::int64_t newer = 1;
    } longer;
    longer.options.struct_size = sizeof longer;
    expect_status(ris_open(bundle.c_str(), &longer.options, &model), RIS_ERROR_ARGUMENT,
                  "newer libris", "newer options");
    options = RIS_OPTIONS_INIT;
    options.max_expressions = -1;
    expect_status(ris_open(bundle.c_str(), &options, &model), RIS_ERROR_ARGUMENT, "max_expressions",
                  "max_expressions -1");
    for (const auto &[providers, words] : {std::pair{"cdua", "'cdua'"},
                                           {"cpu,fushion=cpu", "'fushion'"},
                                           {"cpu,cuda", "names no"},
                                           {"cpu:1", "'cpu:1' names no GPU"},
                                           {"cuda:", "names no GPU"},
                                           {"cuda:x", "names no GPU"},
                                           {"cuda:1024", "names no GPU"},
                                           {"cuda:1,fusion=cuda:2", "'cuda:2'"}}) {
        options = RIS_OPTIONS_INIT;
        options.providers = providers;
        expect_status(ris_open(bundle.c_str(), &options, &model), RIS_ERROR_ARGUMENT, words,
                      providers);
    }
    options = RIS_OPTIONS_INIT;
    options.providers = "cuda:1";
    options.device_id = 2;
    expect_status(ris_open(bundle.c_str(), &options, &model), RIS_ERROR_ARGUMENT, "names GPU 1",
                  "two GPUs");
    options = RIS_OPTIONS_INIT;
    options.engine_cache = "/";
    expect_status(ris_open(bundle.c_str(), &options, &model), RIS_ERROR_ARGUMENT, "tensorrt",
                  "a cache for nothing");
    options.providers = "cpu,fusion=tensorrt";
    options.engine_cache = "no such folder";
    expect_status(ris_open(bundle.c_str(), &options, &model), RIS_ERROR_ARGUMENT, "no folder",
                  "no cache folder");
    expect_status(ris_open("caf\xe9\nbundle", nullptr, &model), RIS_ERROR_BUNDLE,
                  "caf\xef\xbf\xbd bundle: no such", "a path that is no UTF-8, of two lines");
    expect(model == nullptr, "a model that failed to open is NULL");

    expect_status(ris_open(bundle.c_str(), nullptr, &model), RIS_OK, "", "open");
    const std::vector<std::uint8_t> rgb = picture(40, 30, 120);
    expect_status(ris_encode_image(model, nullptr, 40, 30, 120, &scene), RIS_ERROR_ARGUMENT, "rgb",
                  "null pixels");
    expect_status(ris_encode_image(model, rgb.data(), 40, 30, 119, &scene), RIS_ERROR_IMAGE, "120",
                  "short stride");
    expect_status(ris_encode_image(model, rgb.data(), 40, 30, SIZE_MAX, &scene), RIS_ERROR_IMAGE,
                  "stride", "huge stride");
    expect_status(ris_encode_image(model, rgb.data(), 0, 30, 120, &scene), RIS_ERROR_IMAGE, "0x30",
                  "no width");
    expect_status(ris_encode_image(model, rgb.data(), 40, -1, 120, &scene), RIS_ERROR_IMAGE,
                  "40x-1", "negative height");
    expect_status(ris_encode_image(model, rgb.data(), 20000, 20000, 60000, &scene), RIS_ERROR_IMAGE,
                  "120 megapixels", "too large");
    const std::vector<std::uint8_t> line(3 * 1'000'001);
    expect_status(ris_encode_image(model, line.data(), 1'000'001, 1, line.size(), &scene),
                  RIS_ERROR_IMAGE, "a side", "too wide");
    expect_status(ris_encode_image(model, rgb.data(), 40, 30, 120, nullptr), RIS_ERROR_ARGUMENT,
                  "scene", "null scene");
    expect_status(ris_encode_image(nullptr, rgb.data(), 40, 30, 120, &scene), RIS_ERROR_ARGUMENT,
                  "model is NULL", "null model");
    expect_status(ris_info(model, nullptr), RIS_ERROR_ARGUMENT, "json", "info null output");
    expect_status(ris_info(model, &json), RIS_OK, "", "info");
    expect(json != nullptr && std::strstr(json, "\"libris\"") != nullptr, "info is JSON");

    std::int32_t ids[64];
    std::size_t count = 0;
    expect_status(ris_tokenize(model, "left man", ids, 1, &count), RIS_ERROR_ARGUMENT, "capacity",
                  "small capacity");
    expect_status(ris_tokenize(model, "left man", ids, 64, &count), RIS_OK, "", "tokenize");
    expect_status(ris_tokenize(model, "\xc3\x28", ids, 64, &count), RIS_ERROR_EXPRESSION, "UTF-8",
                  "invalid UTF-8");
    expect_status(ris_tokenize(model, "\xed\xa0\x80", ids, 64, &count), RIS_ERROR_EXPRESSION,
                  "UTF-8", "a surrogate");

    expect_status(ris_encode_image(model, rgb.data(), 40, 30, 120, &scene), RIS_OK, "", "encode");
    const std::string long_text(1001, 'a');
    for (const auto &[text, words] : {std::pair{"", "empty"},
                                      {" \t\n", "empty"},
                                      {"\xe2\x80\x8b", "no words"},
                                      {long_text.c_str(), "1001"}}) {
        expect_status(ris_ask(scene, &text, 1, nullptr, &result), RIS_ERROR_EXPRESSION, words,
                      "bad expression");
    }
    const char *missing[] = {"left man", nullptr};
    expect_status(ris_ask(scene, missing, 2, nullptr, &result), RIS_ERROR_ARGUMENT,
                  "expression is NULL", "null expression");
    const char *second_empty[] = {"left man", " "};
    expect_status(ris_ask(scene, second_empty, 2, nullptr, &result), RIS_ERROR_EXPRESSION,
                  "expressions[1]: the expression is empty", "the second expression");
    expect_status(ris_ask(scene, &expression, 0, nullptr, &result), RIS_ERROR_ARGUMENT,
                  "count is 0", "no expressions");
    expect_status(ris_ask(scene, nullptr, 1, nullptr, &result), RIS_ERROR_ARGUMENT, "expressions",
                  "null expressions");
    expect_status(ris_ask(reinterpret_cast<ris_scene *>(model), &expression, 1, nullptr, &result),
                  RIS_ERROR_HANDLE, "scene", "another kind of handle");
    ris_ask_options how = RIS_ASK_INIT;
    how.no_target_threshold = -1;
    expect_status(ris_ask(scene, &expression, 1, &how, &result), RIS_ERROR_ARGUMENT, "threshold",
                  "negative threshold");
    expect_status(ris_ask(scene, &expression, 0, nullptr, &result), RIS_ERROR_ARGUMENT,
                  "count is 0", "no expression");
    expect_status(ris_ask(scene, &expression, SIZE_MAX, nullptr, &result), RIS_ERROR_ARGUMENT,
                  "65536", "a count of -1");
    how = RIS_ASK_INIT;
    how.draws = 1001;
    expect_status(ris_ask(scene, &expression, 1, &how, &result), RIS_ERROR_ARGUMENT,
                  "options.draws", "too many draws");
    how = RIS_ASK_INIT;
    how.use_seed = 1;
    expect_status(ris_ask(scene, &expression, 1, &how, &result), RIS_ERROR_ARGUMENT,
                  "draws no random numbers", "a seed for a model that draws nothing");
    how.struct_size = offsetof(ris_ask_options, draws);  // of libris 0.2, which had no seeds
    expect(ris_ask(scene, &expression, 1, &how, &result) == RIS_OK, "a caller that knows no seeds");
    ris_free_result(result);
    result = nullptr;
    const char *category = "person";
    how = RIS_ASK_INIT;
    how.categories = &category;
    expect_status(ris_ask(scene, &expression, 1, &how, &result), RIS_ERROR_EXPRESSION, "category",
                  "category not wanted");
    ids[0] = 1'000'000;
    expect_status(ris_ask_tokens(scene, ids, 1, count, nullptr, &result), RIS_ERROR_EXPRESSION,
                  "vocabulary", "foreign id");
    expect_status(ris_ask_tokens(scene, ids, 1, count + 1, nullptr, &result), RIS_ERROR_ARGUMENT,
                  "length", "too many ids");
    const std::int32_t padding[3] = {};
    expect_status(ris_ask_tokens(scene, padding, 1, 3, nullptr, &result), RIS_ERROR_EXPRESSION,
                  "padding", "only padding");
    expect(result == nullptr, "a result that failed is NULL");

    expect_status(ris_ask(scene, &expression, 1, nullptr, &result), RIS_OK, "", "ask");
    expect_status(ris_result_get(result, 1, &answer), RIS_ERROR_ARGUMENT, "index is 1",
                  "index past the end");
    answer.struct_size = 0;
    expect_status(ris_result_get(result, 0, &answer), RIS_ERROR_ARGUMENT, "struct_size",
                  "answer of size 0");
    answer.struct_size = sizeof answer - 1;
    expect_status(ris_result_get(result, 0, &answer), RIS_ERROR_ARGUMENT, "struct_size",
                  "an answer cut short");
    expect_status(ris_result_get(result, 0, nullptr), RIS_ERROR_ARGUMENT, "answer", "null answer");
    answer = RIS_ANSWER_INIT;

    // closing first, in the wrong order, twice
    expect_status(ris_close(model), RIS_OK, "", "close");
    expect_status(ris_close(model), RIS_ERROR_HANDLE, "closed", "close twice");
    expect_status(ris_info(model, &json), RIS_ERROR_HANDLE, "closed", "info after close");
    ris_scene *other = nullptr;
    expect_status(ris_encode_image(model, rgb.data(), 40, 30, 120, &other), RIS_ERROR_HANDLE,
                  "closed", "encode after close");
    ris_result *second = nullptr;
    expect_status(ris_ask(scene, &expression, 1, nullptr, &second), RIS_ERROR_HANDLE,
                  "model was closed", "ask after close");
    expect_status(ris_result_get(result, 0, &answer), RIS_OK, "", "a result outlives its model");
    expect(mask_of(answer).size() == 1200, "the mask is of the image's size");
    expect_status(ris_free_scene(scene), RIS_OK, "", "free scene");
    expect_status(ris_free_scene(scene), RIS_ERROR_HANDLE, "freed", "free scene twice");
    expect_status(ris_free_result(result), RIS_OK, "", "free result");
    expect_status(ris_result_get(result, 0, &answer), RIS_ERROR_HANDLE, "freed",
                  "result after free");
    expect_status(ris_free_result(nullptr), RIS_OK, "", "free no result");
    expect_status(ris_free_scene(nullptr), RIS_OK, "", "free no scene");
    expect_status(ris_close(nullptr), RIS_OK, "", "close no model");
}

void replace_in(const fs::path &file, const std::string &from, const std::string &to) {
    std::ifstream in(file, std::ios::binary);
    std::string text{std::istreambuf_iterator<char>(in), {}};
    in.close();
    const std::size_t at = text.find(from);
    expect(at != std::string::npos, "the manifest has " + from);
    text.replace(at, from.size(), to);
    std::ofstream(file, std::ios::binary) << text;
}

void damaged_bundles(const std::string &bundle, const fs::path &scratch) {
    const fs::path copy = scratch / "damaged-bundle";
    const auto fresh = [&] {
        fs::remove_all(copy);
        fs::copy(bundle, copy, fs::copy_options::recursive);
    };
    const auto refused = [&](const std::string &words, const std::string &what) {
        ris_model *model = nullptr;
        expect_status(ris_open(copy.c_str(), nullptr, &model), RIS_ERROR_BUNDLE, words, what);
        const std::string message = ris_last_error();
        ris_close(model);
        return message;
    };
    fs::remove_all(copy);
    refused("no such bundle", "no folder");
    std::ofstream(copy) << "a file";
    refused("is a file", "a file");
    fs::remove(copy);
    fs::create_directory(copy);
    refused("has no manifest.json", "an empty folder");

    fresh();
    fs::remove(copy / "graphs/fusion.onnx");
    std::ofstream(copy / "tokenizer.json", std::ios::app) << " ";
    const std::string message = refused("graphs/fusion.onnx is missing", "two files damaged");
    expect(message.find("tokenizer.json is not the file") != std::string::npos,
           "all damage is told at once");

    fresh();
    replace_in(copy / "manifest.json", "\"format_version\": ", "\"format_version\": 9");
    refused("upgrade", "a newer format");

    fresh();
    replace_in(copy / "manifest.json", "\"size\": 256", "\"size\": \"x\"");
    replace_in(copy / "manifest.json", "\"threshold\"", "\"treshold\"");
    const std::string fields = refused("sam_image.size", "two fields damaged");
    expect(fields.find("answer.threshold is missing") != std::string::npos,
           "all fields are told at once: " + fields);

    fresh();
    replace_in(copy / "manifest.json",
               "\"graphs/fusion.onnx.data\": ", "\"../fusion.onnx.data\": ");
    refused("inside the bundle", "a file outside");

    fresh();
    replace_in(copy / "manifest.json", "\"name\": \"mask_logits\"", "\"name\": \"mask_digits\"");
    refused("'mask_logits', which no stage gives", "another output's name");

    fresh();
    std::ofstream(copy / "manifest.json", std::ios::binary) << std::string(1 << 22, '[');
    refused("too deep", "a manifest of brackets");

    fresh();
    fs::resize_file(copy / "manifest.json", 1000);
    refused("is not JSON", "half a manifest");

    fresh();
    fs::resize_file(copy / "graphs/fusion.onnx", 1000);
    ris_options options = RIS_OPTIONS_INIT;
    options.verify = 0;
    ris_model *model = nullptr;
    expect_status(ris_open(copy.c_str(), &options, &model), RIS_ERROR_BUNDLE, "fusion",
                  "half a graph, not verified");
    fs::remove_all(copy);
}

void cpp_side(const std::string &bundle) {
    try {
        ris::Model model("no such folder");
        expect(false, "an exception");
    } catch (const ris::Error &error) {
        expect(error.status() == RIS_ERROR_BUNDLE, "the exception has the status");
    }
    const ris::Model model(bundle);
    const std::vector<std::uint8_t> rgb = picture(61, 47, 200);
    ris::Scene first = model.encode_image(rgb.data(), 61, 47, 200);
    const ris::Scene scene = std::move(first);
    const ris::Result both = scene.ask({"left man", "the dog"});
    const std::vector<std::int32_t> ids = model.tokenize("left man");
    const ris::Result same = scene.ask_tokens(ids, ids.size());
    expect(mask_of(both[0]) == mask_of(same[0]), "text and its token ids give the same mask");
    const ris::Result snowman = scene.ask(std::string("\xe2\x98\x83 man"));
    expect(std::string(snowman[0].notes).find("\xe2\x98\x83") != std::string::npos,
           "unknown words are named");

    // a row of pixels, and a column, as long as they may be: slow or not, they take little memory
    const std::vector<std::uint8_t> grey(3 * 1'000'000, 90);
    const auto pixels_of = [&](std::int32_t width, std::int32_t height) {
        return mask_of(model.encode_image(grey.data(), width, height).ask("left man")[0]).size();
    };
    expect(pixels_of(1'000'000, 1) == 1'000'000, "a long row");
    expect(pixels_of(1, 1'000'000) == 1'000'000, "a long column");

    // padding between rows is not read
    std::vector<std::uint8_t> tight;
    for (int y = 0; y < 47; ++y) {
        tight.insert(tight.end(), rgb.begin() + y * 200, rgb.begin() + y * 200 + 183);
    }
    expect(mask_of(model.encode_image(tight.data(), 61, 47).ask("left man")[0]) == mask_of(both[0]),
           "stride");
}

void two_threads(const std::string &bundle) {
    const ris::Model model(bundle);
    const std::vector<std::uint8_t> rgb = picture(64, 48, 192);
    const ris::Scene scene = model.encode_image(rgb.data(), 64, 48);
    const std::vector<std::string> expressions = {"left man", "the red ball"};
    std::vector<std::vector<std::uint8_t>> want;
    for (const std::string &expression : expressions) {
        want.push_back(mask_of(scene.ask(expression)[0]));
    }

    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (std::size_t me = 0; me < 2; ++me) {
        threads.emplace_back([&, me] {
            for (int turn = 0; turn < 5; ++turn) {
                const ris::Scene mine = model.encode_image(rgb.data(), 64, 48);
                if (mask_of(scene.ask(expressions[me])[0]) != want[me]) ++wrong;
                if (mask_of(mine.ask(expressions[me])[0]) != want[me]) ++wrong;
                const char *empty = "";
                ris_result *result = nullptr;
                const bool refused =
                    ris_ask(nullptr, &empty, 1, nullptr, &result) == RIS_ERROR_ARGUMENT;
                if (!refused || std::strstr(ris_last_error(), "scene is NULL") == nullptr) ++wrong;
            }
        });
    }
    for (std::thread &thread : threads) thread.join();
    expect(wrong == 0, "two threads on one model: " + std::to_string(wrong) + " wrong answers");

    // one thread closes what the other one uses: answers, then refusals, never a crash
    ris_model *shared = nullptr;
    ris_scene *asked = nullptr;
    expect_status(ris_open(bundle.c_str(), nullptr, &shared), RIS_OK, "", "open");
    expect_status(ris_encode_image(shared, rgb.data(), 64, 48, 192, &asked), RIS_OK, "", "encode");
    std::atomic<bool> started{false};
    std::thread user([&] {
        const char *expression = "left man";
        ris_status status = RIS_OK;
        for (int turn = 0; turn < 200 && status == RIS_OK; ++turn) {
            ris_result *result = nullptr;
            status = ris_ask(asked, &expression, 1, nullptr, &result);
            ris_free_result(result);
            started = true;
        }
        expect(status == RIS_ERROR_HANDLE, "asking ends with a refusal when the model is closed");
    });
    while (!started) std::this_thread::yield();
    ris_close(shared);
    user.join();
    ris_free_scene(asked);
}

}  // namespace

int main(int argc, char **argv) {
    if (argc != 3) {
        std::cerr << "usage: ris-test BUNDLE SCRATCH\n";
        return 2;
    }
    wrong_arguments(argv[1]);
    damaged_bundles(argv[1], argv[2]);
    cpp_side(argv[1]);
    two_threads(argv[1]);
    std::cout << (failures == 0 ? "all passed\n" : std::to_string(failures) + " failed\n");
    return failures == 0 ? 0 : 1;
}
