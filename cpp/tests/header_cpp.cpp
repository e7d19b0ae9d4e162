// ris.hpp alone, and what it promises of its handles, checked by the compiler
#include "ris.hpp"

template <class Handle>
constexpr bool kMoveOnly =
    std::is_nothrow_move_constructible_v<Handle> && std::is_nothrow_move_assignable_v<Handle> &&
    !std::is_copy_constructible_v<Handle> && !std::is_copy_assignable_v<Handle>;

static_assert(kMoveOnly<ris::Model> && kMoveOnly<ris::Scene> && kMoveOnly<ris::Result>);
