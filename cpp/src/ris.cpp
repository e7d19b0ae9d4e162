// The C boundary: checks arguments, turns handles into objects and exceptions into statuses.
#include "ris.h"

#include "error.h"
#include "fork.h"
#include "model.h"
#include "structs.h"

#include <utf8proc.h>

#include <atomic>
#include <cstddef>
#include <cstring>
#include <mutex>
#include <unordered_map>

namespace libris {
namespace {

constexpr const char *kReplacement = "\xef\xbf\xbd";  // U+FFFD

std::string &last_error() {
    thread_local std::string message;
    return message;
}

// In UTF-8 and one line, whatever the names in it are.
std::string one_line(const char *message) {
    const size_t size = std::strlen(message);
    const auto *bytes = reinterpret_cast<const utf8proc_uint8_t *>(message);
    std::string out;
    for (size_t at = 0; at < size;) {
        utf8proc_int32_t code = -1;
        const utf8proc_ssize_t length =
            utf8proc_iterate(bytes + at, static_cast<utf8proc_ssize_t>(size - at), &code);
        if (length <= 0) {
            out += kReplacement;
            ++at;
            continue;
        }
        if (utf8proc_category(code) == UTF8PROC_CATEGORY_CC) out += ' ';
        else out.append(message + at, static_cast<size_t>(length));
        at += static_cast<size_t>(length);
    }
    return out;
}

ris_status fail(ris_status status, const char *message) noexcept {
    try {
        last_error() = one_line(message);
    } catch (...) {
        last_error().clear();  // no memory for the sentence; the status says it
    }
    return status;
}

template <class Call>
ris_status guarded(Call call) noexcept {
    try {
        call();
        return RIS_OK;
    } catch (const Error &error) {
        return fail(error.status, error.what());
    } catch (const std::bad_alloc &) {
        return fail(RIS_ERROR_MEMORY, "out of memory");
    } catch (const std::length_error &) {
        return fail(RIS_ERROR_MEMORY, "out of memory: more was asked for than can be addressed");
    } catch (const std::exception &error) {
        return fail(RIS_ERROR_INTERNAL, error.what());
    } catch (...) {
        return fail(RIS_ERROR_INTERNAL, "an exception of an unknown kind");
    }
}

// Objects by handle. A handle of any kind is a number that a process gives out once. It is no
// address, so that a freed one can be told from a living one.
std::atomic<uintptr_t> next_handle{1};

template <class Handle, class Object>
class Handles {
public:
    Handles(const char *kind, const char *maker) : kind_(kind), maker_(maker) {}

    Handle *add(std::shared_ptr<Object> object) {
        const uintptr_t number = next_handle++;
        const std::lock_guard<std::mutex> lock(mutex_);
        objects_[number] = std::move(object);
        return reinterpret_cast<Handle *>(number);
    }

    std::shared_ptr<Object> get(const Handle *handle) const {
        if (handle == nullptr) {
            throw Error(RIS_ERROR_ARGUMENT,
                        std::string(kind_) + " is NULL; pass what " + maker_ + " returned");
        }
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = objects_.find(reinterpret_cast<uintptr_t>(handle));
        if (found == objects_.end()) throw stale();
        return found->second;
    }

    // What the handle was of, which dies outside the lock; nothing for NULL.
    std::shared_ptr<Object> remove(const Handle *handle) {
        if (handle == nullptr) return nullptr;
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = objects_.find(reinterpret_cast<uintptr_t>(handle));
        if (found == objects_.end()) throw stale();
        std::shared_ptr<Object> last = std::move(found->second);
        objects_.erase(found);
        return last;
    }

    // Around fork(), so that no child finds it locked by a thread that it does not have.
    void lock() const { mutex_.lock(); }
    void unlock() const { mutex_.unlock(); }

private:
    Error stale() const {
        return Error(RIS_ERROR_HANDLE, std::string("this ") + kind_ +
                                           " was closed or freed already, or is not what " +
                                           maker_ + " returned");
    }

    const char *kind_, *maker_;
    mutable std::mutex mutex_;
    std::unordered_map<uintptr_t, std::shared_ptr<Object>> objects_;
};

// They live as long as the process: at exit other threads may still hold handles.
auto &models() {
    static auto *const all = new Handles<ris_model, const Model>("model", "ris_open");
    return *all;
}

auto &scenes() {
    static auto *const all = new Handles<ris_scene, const Scene>("scene", "ris_encode_image");
    return *all;
}

auto &results() {
    static auto *const all = new Handles<ris_result, const Result>("result", "ris_ask");
    return *all;
}

void lock_handles() {
    models().lock();
    scenes().lock();
    results().lock();
}

void unlock_handles() {
    results().unlock();
    scenes().unlock();
    models().unlock();
}

template <class T>
T &require(T *pointer, const char *name) {
    if (pointer == nullptr) throw Error(RIS_ERROR_ARGUMENT, std::string(name) + " is NULL");
    return *pointer;
}

// In one question, so that a count of -1 is no array to read.
constexpr size_t kMostExpressions = 65536;
constexpr int kMostDraws = 1000;
// The structs' sizes in libris 0.2, which had them first. They stay when the structs grow.
constexpr size_t kFirstOptions = offsetof(ris_options, reserved) + sizeof(int32_t);
constexpr size_t kFirstAsk = offsetof(ris_ask_options, no_target_threshold) + sizeof(double);
constexpr size_t kFirstAnswer = offsetof(ris_answer, score) + sizeof(double);
static_assert(sizeof(void *) != 8 || (kFirstOptions == 48 && kFirstAsk == 24 && kFirstAnswer == 72),
              "a field in the middle would break callers that were built before it");

void require_range(int64_t value, int64_t least, int64_t most, const char *name) {
    if (value >= least && value <= most) return;
    throw Error(RIS_ERROR_ARGUMENT, std::string(name) + " should be from " + std::to_string(least) +
                                        " to " + std::to_string(most) + ", found " +
                                        std::to_string(value));
}

Options options_of(const ris_options *given) {
    const ris_options found =
        read_struct<ris_options>(given, RIS_OPTIONS_INIT, kFirstOptions, "options");
    require_range(found.device_id, 0, kLastDevice, "options.device_id");
    require_range(found.threads, 0, 1024, "options.threads");
    require_range(found.strict, 0, 1, "options.strict");
    require_range(found.verify, 0, 1, "options.verify");
    require_range(found.max_expressions, 0, 4096, "options.max_expressions");
    require_range(found.reserved, 0, 0, "options.reserved");

    Options options;
    if (found.providers != nullptr) options.providers = parse_providers(found.providers);
    if (found.engine_cache != nullptr) options.engine_cache = found.engine_cache;
    const int named = options.providers.device_id;
    if (named >= 0 && found.device_id != 0 && found.device_id != named) {
        throw Error(RIS_ERROR_ARGUMENT, "options.device_id is " + std::to_string(found.device_id) +
                                            ", and options.providers names GPU " +
                                            std::to_string(named) + "; give one of them");
    }
    options.device_id = named >= 0 ? named : found.device_id;
    options.threads = found.threads;
    options.max_expressions = found.max_expressions;
    options.strict = found.strict != 0;
    options.verify = found.verify != 0;
    return options;
}

// A question without its expressions.
Question question_of(const ris_ask_options *given, size_t count) {
    const ris_ask_options found =
        read_struct<ris_ask_options>(given, RIS_ASK_INIT, kFirstAsk, "options");
    if (!(found.no_target_threshold >= 0)) {
        const std::string threshold = std::to_string(found.no_target_threshold);
        throw Error(RIS_ERROR_ARGUMENT, "options.no_target_threshold is a probability from 0 to 1, "
                                        "or above 1 for never; found " +
                                            threshold);
    }
    if (count < 1 || count > kMostExpressions) {
        throw Error(RIS_ERROR_ARGUMENT, "count is " + std::to_string(count) + "; ask for 1 to " +
                                            std::to_string(kMostExpressions) + " expressions");
    }
    require_range(found.draws, 0, kMostDraws, "options.draws");
    require_range(found.use_seed, 0, 1, "options.use_seed");
    require_range(found.seed, 0, INT32_MAX, "options.seed");
    require_range(found.reserved, 0, 0, "options.reserved");
    Question question{{}, {}, found.no_target_threshold, std::nullopt, found.draws, ""};
    if (found.form != nullptr) question.form = found.form;
    if (found.use_seed != 0) question.seed = found.seed;
    for (size_t i = 0; found.categories != nullptr && i < count; ++i) {
        question.categories.emplace_back(&require(found.categories[i], "a category"));
    }
    return question;
}

std::pair<std::shared_ptr<const Scene>, std::shared_ptr<const Model>>
scene_of(const ris_scene *handle) {
    std::shared_ptr<const Scene> scene = scenes().get(handle);
    std::shared_ptr<const Model> model = scene->model.lock();
    if (!model || model->is_closed()) {
        throw Error(RIS_ERROR_HANDLE,
                    "the scene's model was closed; open the bundle and encode the image again");
    }
    return {std::move(scene), std::move(model)};
}

// Asks, and gives the answers a handle.
ris_result *answered(const Model &model, const Scene &scene, const Question &question) {
    return results().add(std::make_shared<const Result>(model.ask(scene.encoded, question)));
}

}  // namespace
}  // namespace libris

using namespace libris;

const char *ris_version(void) { return RIS_VERSION; }

const char *ris_last_error(void) { return last_error().c_str(); }

ris_status ris_open(const char *bundle, const ris_options *options, ris_model **model) {
    return guarded([&] {
        require(model, "model") = nullptr;
        const std::string path = &require(bundle, "bundle");
        const Options how = options_of(options);
        [[maybe_unused]] static const bool watched =
            (watch_forks(lock_handles, unlock_handles), true);
        *model = models().add(std::make_shared<const Model>(path, how));
    });
}

ris_status ris_info(const ris_model *model, const char **json) {
    return guarded([&] {
        require(json, "json") = nullptr;
        *json = models().get(model)->info().c_str();
    });
}

ris_status ris_tokenize(const ris_model *model, const char *expression, int32_t *ids,
                        size_t capacity, size_t *count) {
    return ris_tokenize_form(model, expression, nullptr, ids, capacity, count);
}

ris_status ris_tokenize_form(const ris_model *model, const char *expression, const char *form,
                             int32_t *ids, size_t capacity, size_t *count) {
    return guarded([&] {
        const auto opened = models().get(model);
        const size_t length = static_cast<size_t>(opened->max_tokens());
        require(count, "count") = length;
        require(ids, "ids");
        const Tokens tokens =
            opened->tokenize(&require(expression, "expression"), form == nullptr ? "" : form);
        if (capacity < length) {
            throw Error(RIS_ERROR_ARGUMENT, "capacity is " + std::to_string(capacity) +
                                                ", the model reads " + std::to_string(length) +
                                                " tokens");
        }
        std::fill(std::copy(tokens.ids.begin(), tokens.ids.end(), ids), ids + length,
                  opened->pad_id());
    });
}

ris_status ris_encode_image(const ris_model *model, const uint8_t *rgb, int32_t width,
                            int32_t height, size_t stride, ris_scene **scene) {
    return guarded([&] {
        require(scene, "scene") = nullptr;
        const auto opened = models().get(model);
        require(rgb, "rgb");
        if (width < 1 || height < 1) {
            throw Error(RIS_ERROR_IMAGE, "the image is " + std::to_string(width) + "x" +
                                             std::to_string(height) +
                                             " pixels; both sides should be at least 1");
        }
        const size_t least = 3 * static_cast<size_t>(width);
        if (stride < least || stride > SIZE_MAX / 2 / static_cast<size_t>(height)) {
            throw Error(RIS_ERROR_IMAGE, "stride is " + std::to_string(stride) +
                                             " bytes; a row of " + std::to_string(width) +
                                             " RGB pixels has " + std::to_string(least));
        }
        Encoded encoded = opened->encode_image({rgb, width, height, stride});
        *scene = scenes().add(std::make_shared<const Scene>(Scene{opened, std::move(encoded)}));
    });
}

ris_status ris_ask(const ris_scene *scene, const char *const *expressions, size_t count,
                   const ris_ask_options *options, ris_result **result) {
    return guarded([&] {
        require(result, "result") = nullptr;
        const auto [asked, model] = scene_of(scene);
        require(expressions, "expressions");
        Question question = question_of(options, count);
        for (size_t i = 0; i < count; ++i) {
            const char *const expression = &require(expressions[i], "an expression");
            try {
                question.expressions.push_back(model->tokenize(expression, question.form));
            } catch (const Error &error) {
                if (count == 1) throw;
                throw Error(error.status,
                            "expressions[" + std::to_string(i) + "]: " + error.what());
            }
        }
        *result = answered(*model, *asked, question);
    });
}

ris_status ris_ask_tokens(const ris_scene *scene, const int32_t *ids, size_t count, size_t length,
                          const ris_ask_options *options, ris_result **result) {
    return guarded([&] {
        require(result, "result") = nullptr;
        const auto [asked, model] = scene_of(scene);
        require(ids, "ids");
        require_range(static_cast<int64_t>(std::min<size_t>(length, INT32_MAX)), 1,
                      model->max_tokens(), "length");
        Question question = question_of(options, count);
        if (!question.form.empty()) {
            throw Error(RIS_ERROR_ARGUMENT, "token ids are a whole question; leave the form " +
                                                in_quotes(question.form) + " out");
        }
        for (size_t i = 0; i < count; ++i) {
            question.expressions.push_back(model->tokens_of(ids + i * length, length));
        }
        *result = answered(*model, *asked, question);
    });
}

ris_status ris_result_get(const ris_result *result, size_t index, ris_answer *answer) {
    return guarded([&] {
        const auto found = results().get(result);
        require_size(require(answer, "answer").struct_size, kFirstAnswer, "answer");
        if (index >= found->answers.size()) {
            const std::string count = std::to_string(found->answers.size());
            throw Error(RIS_ERROR_ARGUMENT, "index is " + std::to_string(index) +
                                                ", the result has " + count + " answers");
        }

        const Answer &from = found->answers[index];
        ris_answer filled = RIS_ANSWER_INIT;
        filled.mask = from.mask.data();
        filled.logits = from.logits.data();
        filled.notes = from.notes.c_str();
        filled.width = found->width;
        filled.height = found->height;
        filled.logits_width = filled.logits_height = found->mask_size;
        filled.is_no_target = from.is_no_target;
        filled.no_target = from.no_target;
        filled.score = from.score;
        write_struct(answer, filled);
    });
}

ris_status ris_free_result(ris_result *result) {
    return guarded([&] { results().remove(result); });
}

ris_status ris_free_scene(ris_scene *scene) {
    return guarded([&] { scenes().remove(scene); });
}

ris_status ris_close(ris_model *model) {
    return guarded([&] {
        // questions that have begun keep the model alive
        if (const auto closed = models().remove(model)) closed->close();
    });
}
