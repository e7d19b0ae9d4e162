// libris for C++17: RAII over ris.h. Handles are move-only and free themselves; a status other than
// RIS_OK becomes a ris::Error.
//
//     ris::Model model("ris-bundle");
//     ris::Scene scene = model.encode_image(rgb, width, height);
//     ris::Result result = scene.ask({"left man", "the dog"});
//     result[0].mask;  // height x width bytes, 1 inside
//
// Ownership and thread rules are those of ris.h: a Result stays readable after its Scene and its
// Model are gone.
#ifndef RIS_HPP
#define RIS_HPP

#include "ris.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace ris {

/// A call that failed: its status, and the sentence of ris_last_error().
class Error : public std::runtime_error {
public:
    Error(ris_status status, const std::string &message)
        : std::runtime_error(message), status_(status) {}
    ris_status status() const noexcept { return status_; }

private:
    ris_status status_;
};

/// Throws Error unless the status is RIS_OK.
inline void check(ris_status status) {
    if (status != RIS_OK) throw Error(status, ris_last_error());
}

/// How a bundle is opened: ris_options with its defaults.
struct Options : ris_options {
    Options() : ris_options(RIS_OPTIONS_INIT) {}
};

/// How a question is asked.
struct Ask {
    /// One for each expression, for a model that asks by category.
    std::vector<std::string> categories;
    /// As in ris_ask_options.
    double no_target_threshold = 0.5;
    /// For a model that takes random numbers: over how many draws logits are averaged.
    std::optional<std::int32_t> draws;
    /// What such a model's numbers are drawn from; by default the bundle's own seed.
    std::optional<std::int32_t> seed;
    /// The form that the expressions are asked in; by default the model's own choice.
    std::string form;
};

/// Its pointers last as long as the Result that it is from.
using Answer = ris_answer;

/// The answers to one question.
class Result {
public:
    /// Takes over a handle of ris.h and its `count` answers.
    Result(ris_result *result, std::size_t count) : handle_(result), count_(count) {}

    std::size_t size() const noexcept { return count_; }

    Answer operator[](std::size_t index) const {
        Answer answer = RIS_ANSWER_INIT;
        check(ris_result_get(handle_.get(), index, &answer));
        return answer;
    }

private:
    struct Free {
        void operator()(ris_result *result) const noexcept { ris_free_result(result); }
    };
    std::unique_ptr<ris_result, Free> handle_;
    std::size_t count_;
};

/// An encoded image.
class Scene {
public:
    /// Takes over a handle of ris.h.
    explicit Scene(ris_scene *scene) : handle_(scene) {}

    Result ask(const std::vector<std::string> &expressions, const Ask &how = {}) const {
        const std::vector<const char *> texts = pointers(expressions);
        const std::size_t count = texts.size();
        return ask_with(how, count, [&](const ris_ask_options *options, ris_result **result) {
            return ris_ask(handle_.get(), texts.data(), count, options, result);
        });
    }

    /// A template, since {"left man", "the dog"} could be one std::string too.
    template <class Text, class = std::enable_if_t<std::is_convertible_v<Text, std::string>>>
    Result ask(const Text &expression, const Ask &how = {}) const {
        return ask(std::vector<std::string>{std::string(expression)}, how);
    }

    /// `ids`: rows of `length` token ids each.
    Result ask_tokens(const std::vector<std::int32_t> &ids, std::size_t length,
                      const Ask &how = {}) const {
        if (length == 0 || ids.size() % length != 0) {
            const std::string found = std::to_string(ids.size()), row = std::to_string(length);
            throw Error(RIS_ERROR_ARGUMENT, found + " token ids are no rows of " + row + " each");
        }
        const std::size_t count = ids.size() / length;
        return ask_with(how, count, [&](const ris_ask_options *options, ris_result **result) {
            return ris_ask_tokens(handle_.get(), ids.data(), count, length, options, result);
        });
    }

private:
    struct Free {
        void operator()(ris_scene *scene) const noexcept { ris_free_scene(scene); }
    };

    static std::vector<const char *> pointers(const std::vector<std::string> &texts) {
        std::vector<const char *> all;
        for (const std::string &text : texts) all.push_back(text.c_str());
        return all;
    }

    template <class Call>
    static Result ask_with(const Ask &how, std::size_t count, Call call) {
        if (!how.categories.empty() && how.categories.size() != count) {
            const std::string wanted =
                std::to_string(count) + " expressions need as many categories";
            throw Error(RIS_ERROR_EXPRESSION,
                        wanted + ", got " + std::to_string(how.categories.size()));
        }
        const std::vector<const char *> categories = pointers(how.categories);
        ris_ask_options options = RIS_ASK_INIT;
        options.categories = categories.empty() ? nullptr : categories.data();
        options.no_target_threshold = how.no_target_threshold;
        if (how.draws) {
            if (*how.draws < 1) throw Error(RIS_ERROR_ARGUMENT, "draws should be 1 or more");
            options.draws = *how.draws;
        }
        options.use_seed = how.seed.has_value() ? 1 : 0;
        options.seed = how.seed.value_or(0);
        options.form = how.form.empty() ? nullptr : how.form.c_str();
        ris_result *result = nullptr;
        check(call(&options, &result));
        return Result(result, count);
    }

    std::unique_ptr<ris_scene, Free> handle_;
};

/// An opened bundle.
class Model {
public:
    explicit Model(const std::string &bundle, const ris_options &options = Options()) {
        ris_model *model = nullptr;
        check(ris_open(bundle.c_str(), &options, &model));
        handle_.reset(model);
    }

    /// A JSON object: what was opened, and what runs it.
    std::string info() const {
        const char *json = nullptr;
        check(ris_info(handle_.get(), &json));
        return json;
    }

    /// The token ids that the model reads, padded. form: as of Ask.
    std::vector<std::int32_t> tokenize(const std::string &expression,
                                       const std::string &form = "") const {
        std::size_t count = 0;
        std::vector<std::int32_t> ids(64);
        const char *const text = expression.c_str(), *const named =
                                                         form.empty() ? nullptr : form.c_str();
        const auto fill = [&] {
            return ris_tokenize_form(handle_.get(), text, named, ids.data(), ids.size(), &count);
        };
        ris_status status = fill();
        if (status == RIS_ERROR_ARGUMENT && count > ids.size()) {
            ids.resize(count);
            status = fill();
        }
        check(status);
        ids.resize(count);
        return ids;
    }

    /// rgb: 8-bit RGB, the top row first; stride: bytes from row to row, 0 for 3 * width.
    Scene encode_image(const std::uint8_t *rgb, std::int32_t width, std::int32_t height,
                       std::size_t stride = 0) const {
        ris_scene *scene = nullptr;
        if (stride == 0 && width > 0) stride = 3 * static_cast<std::size_t>(width);
        check(ris_encode_image(handle_.get(), rgb, width, height, stride, &scene));
        return Scene(scene);
    }

private:
    struct Close {
        void operator()(ris_model *model) const noexcept { ris_close(model); }
    };
    std::unique_ptr<ris_model, Close> handle_;
};

}  // namespace ris

#endif
