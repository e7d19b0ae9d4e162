#include "widen.h"

#include "error.h"
#include "wire.h"

#include <set>
#include <string_view>
#include <vector>

namespace libris {
namespace {

constexpr uint64_t kFloat = 1, kFloat16 = 10;
constexpr uint64_t kModelGraph = 7, kGraphNode = 1, kGraphInitializer = 5, kGraphOutput = 12;
constexpr uint64_t kNodeInput = 1, kNodeOutput = 2, kNodeName = 3, kNodeOperator = 4;
constexpr uint64_t kNodeAttribute = 5;
constexpr uint64_t kAttributeName = 1, kAttributeInteger = 3, kAttributeType = 20;
constexpr uint64_t kAttributeTypeInteger = 2;
constexpr uint64_t kTensorType = 2, kTensorName = 8;
constexpr uint64_t kValueName = 1, kValueType = 2, kTypeOfTensors = 1, kTypeElements = 1;

using Names = std::set<std::string_view>;

// The content of the last field of that number; "" where there is none.
std::string_view content(std::string_view data, uint64_t number) {
    std::string_view found;
    each_field(data, [&](const Field &field) {
        if (field.is_bytes && field.number == number) found = field.content;
    });
    return found;
}

bool has(std::string_view data, uint64_t number, uint64_t value) {
    bool found = false;
    each_field(data, [&](const Field &field) { found = found || is(field, number, value); });
    return found;
}

bool is_cast(std::string_view node) { return content(node, kNodeOperator) == "Cast"; }

// Whether a node writes one of the values.
bool writes(std::string_view node, const Names &values) {
    bool found = false;
    each_field(node, [&](const Field &field) {
        const bool is_output = field.is_bytes && field.number == kNodeOutput;
        found = found || (is_output && values.count(field.content) != 0);
    });
    return found;
}

// The values that a graph's FP16 outputs are joined of, up to the last casts; they stay FP16.
Names edge(std::string_view graph) {
    Names found;
    std::vector<std::string_view> nodes;
    each_field(graph, [&](const Field &field) {
        if (field.is_bytes && field.number == kGraphNode) nodes.push_back(field.content);
        if (!field.is_bytes || field.number != kGraphOutput) return;
        const std::string_view tensors =
            content(content(field.content, kValueType), kTypeOfTensors);
        if (has(tensors, kTypeElements, kFloat16)) found.insert(content(field.content, kValueName));
    });
    for (auto node = nodes.rbegin(); node != nodes.rend() && !found.empty(); ++node) {
        if (is_cast(*node) || !writes(*node, found)) continue;
        each_field(*node, [&](const Field &field) {
            if (field.is_bytes && field.number == kNodeInput) found.insert(field.content);
        });
    }
    return found;
}

// An attribute of a Cast: "to", and in later operator sets others.
std::string cast_attribute(std::string_view data) {
    bool to = false;
    each_field(data, [&](const Field &field) { to = to || is(field, kAttributeName, "to"); });
    std::string out;
    each_field(data, [&](const Field &field) {
        if (to && is(field, kAttributeInteger, kFloat16)) {
            put_number(out, kAttributeInteger, kFloat);
        } else {
            out.append(field.raw);
        }
    });
    return out;
}

// Casts to FP16 are to FP32, but for what writes a value of the edge.
std::string node(std::string_view data, const Names &edge) {
    const bool cast = is_cast(data) && !writes(data, edge);
    std::string out;
    each_field(data, [&](const Field &field) {
        if (cast && field.is_bytes && field.number == kNodeAttribute) {
            put_bytes(out, kNodeAttribute, cast_attribute(field.content));
        } else {
            out.append(field.raw);
        }
    });
    return out;
}

std::string cast_to_float(const std::string &source, const std::string &target) {
    std::string to, out;
    put_bytes(to, kAttributeName, "to");
    put_number(to, kAttributeInteger, kFloat);
    put_number(to, kAttributeType, kAttributeTypeInteger);
    put_bytes(out, kNodeInput, source);
    put_bytes(out, kNodeOutput, target);
    put_bytes(out, kNodeName, target + ".widen");
    put_bytes(out, kNodeOperator, "Cast");
    put_bytes(out, kNodeAttribute, to);
    return out;
}

// An initializer. An FP16 one gets another name, and `cast` becomes the node that gives it back
// under its own.
std::string initializer(std::string_view data, std::string &cast) {
    bool half = false;
    std::string name;
    each_field(data, [&](const Field &field) {
        half = half || is(field, kTensorType, kFloat16);
        if (field.is_bytes && field.number == kTensorName) name = field.content;
    });
    if (!half) return std::string(data);
    std::string out;
    each_field(data, [&](const Field &field) {
        if (field.is_bytes && field.number == kTensorName) {
            put_bytes(out, kTensorName, name + ".fp16");
        } else {
            out.append(field.raw);
        }
    });
    cast = cast_to_float(name + ".fp16", name);
    return out;
}

std::string graph(std::string_view data) {
    std::string casts, rest;
    const Names halves = edge(data);
    each_field(data, [&](const Field &field) {
        std::string cast;
        if (field.is_bytes && field.number == kGraphNode) {
            put_bytes(rest, kGraphNode, node(field.content, halves));
        } else if (field.is_bytes && field.number == kGraphInitializer) {
            put_bytes(rest, kGraphInitializer, initializer(field.content, cast));
            if (!cast.empty()) put_bytes(casts, kGraphNode, cast);
        } else {
            rest.append(field.raw);
        }
    });
    return casts + rest;
}

}  // namespace

std::string widened(const std::string &onnx, const std::string &path) {
    try {
        std::string out;
        each_field(onnx, [&](const Field &field) {
            if (field.is_bytes && field.number == kModelGraph) {
                put_bytes(out, kModelGraph, graph(field.content));
            } else {
                out.append(field.raw);
            }
        });
        return out;
    } catch (const NoProtobuf &) {
        throw Error(RIS_ERROR_BUNDLE,
                    path + " is not an ONNX file that can be read; export the bundle again");
    }
}

}  // namespace libris
