/* libris: referring image segmentation, image + "left man" -> mask, from a bundle that ris-export
 * wrote.
 *
 *     ris_model *model; ris_scene *scene; ris_result *result; ris_answer answer = RIS_ANSWER_INIT;
 *     const char *what = "left man";
 *     ris_open("ris-bundle", NULL, &model);
 *     ris_encode_image(model, rgb, width, height, 3 * width, &scene);
 *     ris_ask(scene, &what, 1, NULL, &result);
 *     ris_result_get(result, 0, &answer);      // answer.mask: height x width bytes, 1 inside
 *     ris_free_result(result); ris_free_scene(scene); ris_close(model);
 *
 * Status      Every function that can fail returns a ris_status. Where it is not RIS_OK,
 *             ris_last_error() has a sentence that says what was found, what was expected and the
 *             way out; outputs are NULL or untouched. Nothing aborts, prints, or throws across this
 *             boundary.
 *
 * Ownership   The caller frees whatever is returned through a `**` argument: in any order, once.
 *             NULL may be freed. Handles are numbers in disguise that are never used twice: one
 *             that was freed, or is of another kind, is refused with RIS_ERROR_HANDLE. Closing a
 *             model makes its scenes refuse further questions, and does not wait: those that have
 *             begun are answered. Results stay readable until they are freed. Inputs are only read
 *             during the call. Strings are UTF-8; paths are the bytes that the system has for them.
 *             Memory that a result or an info string points to belongs to its handle and lasts as
 *             long.
 *
 * Threads     Every function may be called from any thread, on the same handles too; calls on one
 *             model overlap. A handle that is freed while another thread's call uses it lives until
 *             that call returns; what its result or info points to does not. ris_last_error() is
 *             the calling thread's own.
 *
 * Processes   A model that was opened before fork() may be closed in the child, asked, or left
 *             alone: the child ends as usual. The child's first question opens the graphs once
 *             more, from the same folder, which costs time and memory; on a GPU it is refused. Each
 *             process frees its own handles. No thread may be inside ris_open during fork(), unless
 *             the child is to exec. Where processes are to share the work, open the bundle in each.
 *
 * Environment Nothing leaves the machine: as libris is loaded, it sets ORT_DISABLE_TELEMETRY to 1
 *             unless it is set. ris_open reads no other variable but those that say where the key
 *             for engine_cache is. Any locale will do.
 */
#ifndef RIS_H
#define RIS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __GNUC__
#define RIS_API __attribute__((visibility("default")))
#else
#define RIS_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ris_model ris_model;   /* an opened bundle: its graphs, ready to run */
typedef struct ris_scene ris_scene;   /* an encoded image: ask it as often as you like */
typedef struct ris_result ris_result; /* the answers to one question, one for each expression */

typedef enum ris_status {
    RIS_OK = 0,
    RIS_ERROR_ARGUMENT = 1,   /* a null pointer, a wrong size, an unknown option */
    RIS_ERROR_HANDLE = 2,     /* a handle that was closed or freed, or never was one */
    RIS_ERROR_BUNDLE = 3,     /* a bundle that is missing, damaged or too new */
    RIS_ERROR_ENGINE = 4,     /* a provider that is not available, or a graph that failed */
    RIS_ERROR_IMAGE = 5,      /* an image with a wrong stride or out of limits */
    RIS_ERROR_EXPRESSION = 6, /* an expression, category or token ids that the model refuses */
    RIS_ERROR_MEMORY = 7,     /* out of memory */
    RIS_ERROR_INTERNAL = 8    /* a fault of libris: please report it */
} ris_status;

/* How a bundle is opened. Start from RIS_OPTIONS_INIT; NULL in place of options means the same. */
typedef struct ris_options {
    /* sizeof(ris_options). Later versions add fields at the end, and go on serving callers that
     * were built with any earlier one: what those lack has its default. */
    size_t struct_size;
    /* What runs the graphs: "cpu", "cuda" or "tensorrt", then exceptions by graph, such as
     * "cuda,NAME=cpu"; ris_info has the names. "cuda:1" is the GPU of that number, as device_id
     * below. NULL: "cpu". Where a provider does not start, ris_open fails; nothing falls back
     * unseen. */
    const char *providers;
    /* Folder for what the TensorRT provider compiled: an EPContext model for each graph. It must
     * exist. NULL: everything is compiled each time. Engines are code: one is read again only where
     * this user's key vouches for it and no other user may write it. The key is 32 bytes in the
     * file that $RIS_PLAN_KEY names, else made once in $XDG_STATE_HOME/ris-runtime/key or
     * ~/.local/state/ris-runtime/key; Python's engines have the same key. */
    const char *engine_cache;
    int32_t device_id; /* which GPU, counted from 0 */
    /* CPU threads of a graph; 0: all cores that the process may use, or its container's share */
    int32_t threads;
    int32_t strict; /* 1: refuse to run any part of a graph off the GPU */
    int32_t verify; /* 1: check the SHA-256 of every file; 0: only that it is there */
    /* The most expressions that go through the graphs at once, which bounds memory. 0: eight, or
     * one of a model whose questions cost 10^12 operations or more. */
    int32_t max_expressions;
    int32_t reserved; /* 0 */
} ris_options;

#define RIS_OPTIONS_INIT {sizeof(ris_options), NULL, NULL, 0, 0, 0, 1, 0, 0}

/* How a question is asked. Start from RIS_ASK_INIT; NULL in place of it means the same. */
typedef struct ris_ask_options {
    size_t struct_size;
    /* For a model that asks by category: the category's name for each expression. NULL for other
     * models. */
    const char *const *categories;
    /* Above this no-target probability, 0 to 1, the mask is empty; from 1 on: never. */
    double no_target_threshold;
    /* For a model that takes random numbers, which ris_info says as "draws"; others refuse both:
     * over how many draws, 1 to 1000, the mask logits are averaged; 0: one draw. What does not
     * depend on the numbers runs once. */
    int32_t draws;
    /* 1: the numbers are drawn from `seed`, 0 or above; 0: from the bundle's own seed. An
     * expression's answer does not depend on what else is asked, but for the rounding of its
     * logits, and a seed gives the numbers that
     * it gives in Python. */
    int32_t use_seed;
    int32_t seed;
    int32_t reserved; /* 0 */
    /* The form that the expressions are asked in, one of those that ris_info lists, such as
     * "phrase"; NULL: the model's own choice. ris_ask_tokens takes none. */
    const char *form;
} ris_ask_options;

#define RIS_ASK_INIT {sizeof(ris_ask_options), NULL, 0.5, 0, 0, 0, 0, NULL}

/* The answer to one expression. Start from RIS_ANSWER_INIT. Pointers last as long as the result. */
typedef struct ris_answer {
    size_t struct_size;
    /* height x width bytes without padding, 1 inside the mask, of the image's own size */
    const uint8_t *mask;
    /* logits_height x logits_width, the mask logits before any no-target decision; of a bundle
     * whose pictures are letterboxed they are of the whole letterbox */
    const float *logits;
    /* what a user should know, such as words that the model does not know: lines, usually "" */
    const char *notes;
    int32_t width, height;
    int32_t logits_width, logits_height;
    int32_t is_no_target; /* 1: nothing in the image fits, and the mask is empty for that reason */
    int32_t reserved;     /* 0 */
    double no_target;     /* probability that nothing in the image fits; -1: the model gives none */
    double score;         /* mean foreground probability over the mask; 0 where it is empty */
} ris_answer;

#define RIS_ANSWER_INIT {sizeof(ris_answer), NULL, NULL, NULL, 0, 0, 0, 0, 0, 0, -1.0, 0.0}

/* The version of this library, "major.minor.patch". */
RIS_API const char *ris_version(void);

/* The sentence about the calling thread's last call that failed, "" if none has. It is valid until
 * the thread's next failure. */
RIS_API const char *ris_last_error(void);

/* Opens the bundle in a folder: checks its files, then loads its graphs. */
RIS_API ris_status ris_open(const char *bundle, const ris_options *options, ris_model **model);

/* What was opened, and what runs it, as a JSON object. It lasts until the model is closed. */
RIS_API ris_status ris_info(const ris_model *model, const char **json);

/* The token ids that the model reads of an expression, padded to the model's own number of tokens,
 * which `*count` gets. RIS_ERROR_ARGUMENT where `capacity` is below that number. */
RIS_API ris_status ris_tokenize(const ris_model *model, const char *expression, int32_t *ids,
                                size_t capacity, size_t *count);

/* The same of an expression in a form, as in ris_ask_options. */
RIS_API ris_status ris_tokenize_form(const ris_model *model, const char *expression,
                                     const char *form, int32_t *ids, size_t capacity,
                                     size_t *count);

/* Runs the graphs that need no expression. rgb: 8-bit RGB, the top row first. stride: bytes from
 * one row to the next, at least 3 * width. The picture must be upright: what a viewer would show.
 */
RIS_API ris_status ris_encode_image(const ris_model *model, const uint8_t *rgb, int32_t width,
                                    int32_t height, size_t stride, ris_scene **scene);

/* Asks for `count` expressions at once, 65536 at most, each with an answer of its own. */
RIS_API ris_status ris_ask(const ris_scene *scene, const char *const *expressions, size_t count,
                           const ris_ask_options *options, ris_result **result);

/* The same by token ids: `count` rows of `length` ids as ris_tokenize gives them, padded or not. */
RIS_API ris_status ris_ask_tokens(const ris_scene *scene, const int32_t *ids, size_t count,
                                  size_t length, const ris_ask_options *options,
                                  ris_result **result);

/* The answer to expression `index`. */
RIS_API ris_status ris_result_get(const ris_result *result, size_t index, ris_answer *answer);

/* Frees the answers to a question. */
RIS_API ris_status ris_free_result(ris_result *result);

/* Frees an encoded image. */
RIS_API ris_status ris_free_scene(ris_scene *scene);

/* Closes a bundle: its scenes refuse further questions. */
RIS_API ris_status ris_close(ris_model *model);

#ifdef __cplusplus
}
#endif

#endif
