// A model that others use while it is closed, and one that was opened before fork(). Run it in a
// sanitizer build too.
//
//     ris-processes BUNDLE
#include "ris.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iostream>
#include <thread>

namespace {

bool is_child = false;

}  // namespace

// A child has what its parent's threads held, and not the threads: no leaks of its own.
extern "C" __attribute__((visibility("default"))) int __lsan_is_turned_off() {
    return is_child ? 1 : 0;
}

namespace {

constexpr std::int32_t kWidth = 64, kHeight = 48;
constexpr int kThreads = 8;
constexpr unsigned kPatience = 60;  // seconds, after which a process that hangs is ended

int failures = 0;

void expect(bool good, const std::string &what) {
    if (good) return;
    ++failures;
    std::cerr << "FAILED: " << what << "\n";
}

const std::vector<std::uint8_t> &picture() {
    static const std::vector<std::uint8_t> rgb = [] {
        std::vector<std::uint8_t> made(3 * kWidth * kHeight);
        for (std::size_t i = 0; i < made.size(); ++i) made[i] = static_cast<std::uint8_t>(i * 7);
        return made;
    }();
    return rgb;
}

std::vector<float> answer_of(const ris::Scene &scene) {
    const ris::Result result = scene.ask("left man");
    const ris::Answer answer = result[0];
    return {answer.logits, answer.logits + answer.logits_width * answer.logits_height};
}

std::vector<std::thread> threads(const std::function<void()> &work) {
    std::vector<std::thread> all;
    for (int i = 0; i < kThreads; ++i) all.emplace_back(work);
    return all;
}

// What a child does ends well: by _exit(0) at the latest.
void child(const std::string &what, const std::function<void()> &work) {
    const pid_t process = fork();
    if (process == 0) {
        alarm(kPatience);
        is_child = true;
        try {
            work();
        } catch (const std::exception &error) {
            std::cerr << error.what() << "\n";
            _exit(1);
        }
        _exit(0);
    }
    int status = 0;
    waitpid(process, &status, 0);
    expect(WIFEXITED(status) && WEXITSTATUS(status) == 0,
           what + ": status " + std::to_string(status));
}

// Answers, then refusals, never a crash: closing does not wait, and questions that have begun are
// answered.
void closed_while_asked(const std::string &bundle) {
    for (int turn = 0; turn < 3; ++turn) {
        ris_model *model = nullptr;
        ris_scene *scene = nullptr;
        ris::check(ris_open(bundle.c_str(), nullptr, &model));
        ris::check(ris_encode_image(model, picture().data(), kWidth, kHeight, 3 * kWidth, &scene));
        std::atomic<int> answers{0}, wrong{0};
        std::vector<std::thread> asking = threads([&] {
            const char *expression = "left man";
            for (;;) {
                ris_result *result = nullptr;
                const ris_status status = ris_ask(scene, &expression, 1, nullptr, &result);
                ris_free_result(result);
                if (status == RIS_OK) {
                    ++answers;
                    continue;
                }
                if (status != RIS_ERROR_HANDLE ||
                    std::strstr(ris_last_error(), "model was closed") == nullptr) {
                    ++wrong;
                }
                return;
            }
        });
        while (answers < kThreads) std::this_thread::yield();
        ris::check(ris_close(model));
        for (std::thread &thread : asking) thread.join();
        ris::check(ris_free_scene(scene));
        expect(wrong == 0, "a closed model is refused as closed");
    }
}

void forked(const std::string &bundle) {
    [[maybe_unused]] std::atomic<bool> done{false};
    ris::Model model(bundle);
    ris::Scene scene = model.encode_image(picture().data(), kWidth, kHeight);
    const std::vector<float> want = answer_of(scene);
    const auto ask = [&] {
        if (answer_of(scene) != want) throw std::runtime_error("another answer");
        const ris::Scene own = model.encode_image(picture().data(), kWidth, kHeight);
        if (answer_of(own) != want) throw std::runtime_error("another answer of its own scene");
    };
    const auto close = [&] {
        const ris::Scene freed = std::move(scene);
        const ris::Model closed = std::move(model);
    };
    child("exit", [] { std::exit(0); });
    child("close", close);
    child("ask", ask);
    child("ask, close, exit", [&] {
        ask();
        close();
        std::exit(0);
    });
    child("a daemon's folder", [&] {
        if (chdir("/") != 0) _exit(2);
        ask();
    });
    child("8 threads", [&] {
        std::atomic<int> wrong{0};
        std::vector<std::thread> asking = threads([&] { wrong += answer_of(scene) != want; });
        for (std::thread &thread : asking) thread.join();
        if (wrong != 0) throw std::runtime_error("another answer");
        close();
    });
    child("a child's child", [&] {
        ask();
        child("grandchild", ask);
        child("grandchild that closes", close);
        if (failures != 0) _exit(1);
    });

#ifndef __SANITIZE_ADDRESS__  // AddressSanitizer's own locks and shadow do not survive such a fork
    // forks while other threads ask, which may hold any lock
    std::vector<std::thread> asking = threads([&] {
        while (!done) answer_of(scene);
    });
    for (int turn = 0; turn < 4; ++turn) {
        child("forked from a busy process", [&] {
            ask();
            close();
        });
    }
    done = true;
    for (std::thread &thread : asking) thread.join();
#endif
    expect(answer_of(scene) == want, "the parent goes on");
}

}  // namespace

int main(int argc, char **argv) {
    if (argc != 2) {
        std::cerr << "usage: ris-processes BUNDLE\n";
        return 2;
    }
    closed_while_asked(argv[1]);
    forked(argv[1]);
    std::cout << (failures == 0 ? "all passed\n" : std::to_string(failures) + " failed\n");
    return failures == 0 ? 0 : 1;
}
