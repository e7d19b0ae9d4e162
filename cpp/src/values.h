// The values of an image or a question by name, while stages run.
#pragma once

#include "engine.h"

#include <map>
#include <string>
#include <utility>

namespace libris {

class Values {
public:
    // One that the host made; it is held here. It takes the place of an earlier one of the name.
    void give(const std::string &name, Array array) {
        tensors_.erase(name);  // a view of what is overwritten
        held_[name] = std::move(array);
        tensors_.emplace(name, tensor(held_[name]));
    }

    // One that a stage gave, or a view of another's memory; likewise.
    void give(const std::string &name, Ort::Value value) {
        tensors_.insert_or_assign(name, std::move(value));
    }

    bool has(const std::string &name) const { return tensors_.count(name) != 0; }
    const Ort::Value &at(const std::string &name) const { return tensors_.at(name); }

    // In memory of its own. What was held here is so no more.
    Array taken(const std::string &name) {
        const auto held = held_.find(name);
        return held != held_.end() ? std::move(held->second) : copied(at(name));
    }

private:
    std::map<std::string, Array> held_;
    std::map<std::string, Ort::Value> tensors_;
};

}  // namespace libris
