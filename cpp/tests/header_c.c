/* ris.h alone, as C99, with every initialiser in use */
#include "ris.h"

ris_options header_options(void);
ris_ask_options header_ask(void);
ris_answer header_answer(void);

ris_options header_options(void) {
    ris_options options = RIS_OPTIONS_INIT;
    return options;
}

ris_ask_options header_ask(void) {
    ris_ask_options options = RIS_ASK_INIT;
    return options;
}

ris_answer header_answer(void) {
    ris_answer answer = RIS_ANSWER_INIT;
    return answer;
}
