#include "fork.h"

#include <pthread.h>

#include <atomic>
#include <new>

namespace libris {
namespace {

std::atomic<unsigned> generation{0};
void (*after_fork)() = nullptr;

void in_child() {
    ++generation;
    after_fork();
}

}  // namespace

unsigned fork_generation() { return generation; }

void watch_forks(void (*before)(), void (*after)()) {
    after_fork = after;
    if (pthread_atfork(before, after, in_child) != 0) throw std::bad_alloc();
}

}  // namespace libris
