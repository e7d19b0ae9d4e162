// What fork() takes from a child: all threads but the one that called it, with whatever locks they
// held. ONNX Runtime's sessions wait for their threads when they end, so a child never ends those
// of its parent: it leaves them alone, and opens its own when it asks.
#pragma once

namespace libris {

// How often this process and its ancestors were forked, as seen from here: a number that is another
// one in a child.
unsigned fork_generation();

// Calls `before` ahead of each fork() of this process, and `after` behind it, in the parent and in
// the child. Call it once.
void watch_forks(void (*before)(), void (*after)());

}  // namespace libris
