// The runtime itself: open a bundle, encode an image once, ask it as often as you like.
#pragma once

#include "engine.h"
#include "image.h"
#include "tokenizer.h"
#include "values.h"

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace libris {

struct Options {
    Providers providers;
    std::string engine_cache;
    int device_id = 0, threads = 0, max_expressions = 0;
    bool strict = false, verify = true;
};

// The answer to one expression; no_target: -1 where the model has no such head.
struct Answer {
    std::vector<uint8_t> mask;
    std::vector<float> logits;
    std::string notes;
    double no_target = -1, score = 0;
    bool is_no_target = false;
};

// The answers to one question, for an image of width x height.
struct Result {
    int width, height, mask_size;
    std::vector<Answer> answers;
};

// Several expressions; categories: names, or none for a model that does not ask by category.
// seed: of random numbers, none for the bundle's own; draws: over how many of them the logits are
// averaged, 0 where the caller does not say.
struct Question {
    std::vector<Tokens> expressions;
    std::vector<std::string> categories;
    double no_target_threshold;
    std::optional<int> seed;
    int draws;
    std::string form;  // that the expressions stand in; "": the model's own choice
};

// An image's values that questions take. They are in memory of their own: a process that was forked
// frees nothing of its parent's sessions.
struct Encoded {
    int width, height;
    std::map<std::string, Array> values;
};

class Model {
public:
    Model(const std::string &path, const Options &options);
    Model(const Model &) = delete;
    Model &operator=(const Model &) = delete;
    ~Model();

    // From now on its scenes refuse: threads that ask on and on would keep it alive for ever.
    void close() const { is_closed_ = true; }
    bool is_closed() const { return is_closed_; }

    const std::string &info() const { return info_; }
    int max_tokens() const { return text().max_tokens; }
    int32_t pad_id() const { return text().pad_id; }
    // form: a name, or "" for the model's own choice.
    Tokens tokenize(std::string_view expression, const std::string &form) const {
        return (*tokenizer_)(expression, text().form_named(form));
    }

    // `row`: token ids, padded or not. Throws Error where the model has no such ids.
    Tokens tokens_of(const int32_t *row, size_t length) const;

    Encoded encode_image(const Image &image) const;
    Result ask(const Encoded &scene, const Question &question) const;

private:
    // The graphs of one process.
    struct Graphs {
        Graphs(const Bundle &bundle, const EngineOptions &options);

        unsigned opened_in;  // fork_generation()
        std::vector<Session> sessions;
        mutable const Graphs *next = nullptr;  // in what a child keeps of its parent
    };

    // Ends graphs, unless they are of a process that this one was forked from.
    static void let_go(const Graphs *graphs);

    // This process's graphs, opened now where it was forked since. Throws Error as the constructor.
    const std::vector<Session> &sessions() const;

    const Text &text() const { return bundle_.manifest.host.text; }

    // Which stages run together: once an image, for each question, for each draw of a question,
    // on the mean of all draws.
    enum class Turn { image, question, draw, mean };
    static std::vector<Turn> turns_of(const Manifest &manifest);

    // Runs the stages of a turn, and resizes what they give.
    void run(Turn turn, int64_t expressions, Values &values) const;

    // The values that answers are made of, of several draws the mean ones.
    struct Logits {
        std::vector<float> masks, no_target;
    };

    // Runs the stages of each draw, gives the means of what draws are averaged at, and runs what
    // is behind it.
    void run_draws(const Question &question, size_t count, Values &values) const;
    Logits logits_of(size_t count, const Values &values) const;

    // What the host gives for some of a question's expressions, from `start` on.
    void give_expressions(const Question &question, size_t start, size_t count,
                          const std::vector<size_t> &category_rows, Values &values) const;

    // Their answers.
    void answer(const Encoded &scene, const Question &question, size_t start, size_t count,
                const Logits &found, Result &result) const;
    std::vector<size_t> category_rows(const Question &question) const;

    Bundle bundle_;
    bool verify_;
    EngineOptions engine_;
    int mask_size_;
    std::vector<Turn> turns_;  // of the stages
    mutable std::atomic<const Graphs *> graphs_{nullptr};
    mutable std::atomic<bool> is_closed_{false};
    std::unique_ptr<Tokenizer> tokenizer_;
    std::vector<std::string> category_names_;
    Features category_features_{};
    std::string info_;
};

// An encoded image and the model that it can be put to, unless that is closed.
struct Scene {
    std::weak_ptr<const Model> model;
    Encoded encoded;
};

}  // namespace libris
