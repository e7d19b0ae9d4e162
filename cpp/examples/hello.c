/* libris from C: a picture that is made here, one question, the mask as text.
 *
 *     ris-hello BUNDLE EXPRESSION [CATEGORY]
 */
#include "ris.h"

#include <stdio.h>
#include <stdlib.h>

enum { WIDTH = 64, HEIGHT = 32 };

static int failed(ris_status status) {
    if (status != RIS_OK) fprintf(stderr, "ris-hello: %s\n", ris_last_error());
    return status != RIS_OK;
}

int main(int argc, char **argv) {
    ris_model *model = NULL;
    ris_scene *scene = NULL;
    ris_result *result = NULL;
    ris_answer answer = RIS_ANSWER_INIT;
    ris_ask_options how = RIS_ASK_INIT;
    static uint8_t rgb[HEIGHT][WIDTH][3];
    const char *expression, *category;
    int code = 2;

    if (argc < 3) {
        fprintf(stderr, "usage: %s BUNDLE EXPRESSION [CATEGORY]\n", argv[0]);
        return 2;
    }
    for (int y = 0; y < HEIGHT; ++y) {
        for (int x = 0; x < WIDTH; ++x) {
            /* red on the left, blue on the right */
            rgb[y][x][0] = (uint8_t)(x < WIDTH / 2 ? 230 : 40);
            rgb[y][x][2] = (uint8_t)(255 - rgb[y][x][0]);
        }
    }
    expression = argv[2];
    category = argc > 3 ? argv[3] : NULL;
    if (category != NULL) how.categories = &category;
    how.no_target_threshold = 2; /* show the mask in any case */

    if (!failed(ris_open(argv[1], NULL, &model)) &&
        !failed(ris_encode_image(model, &rgb[0][0][0], WIDTH, HEIGHT, sizeof rgb[0], &scene)) &&
        !failed(ris_ask(scene, &expression, 1, &how, &result)) &&
        !failed(ris_result_get(result, 0, &answer))) {
        for (int32_t y = 0; y < answer.height; y += 2) {
            const uint8_t *row = answer.mask + y * answer.width;
            for (int32_t x = 0; x < answer.width; ++x) putchar(row[x] ? '#' : '.');
            putchar('\n');
        }
        printf("score %.3f, no target %.3f\n", answer.score, answer.no_target);
        code = 0;
    }
    ris_free_result(result);
    ris_free_scene(scene);
    ris_close(model);
    return code;
}
