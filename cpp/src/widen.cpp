#include "widen.h"

#include "error.h"
#include "wire.h"

namespace libris {
namespace {

constexpr uint64_t kFloat = 1, kFloat16 = 10;
constexpr uint64_t kModelGraph = 7, kGraphNode = 1, kGraphInitializer = 5;
constexpr uint64_t kNodeInput = 1, kNodeOutput = 2, kNodeName = 3, kNodeOperator = 4;
constexpr uint64_t kNodeAttribute = 5;
constexpr uint64_t kAttributeName = 1, kAttributeInteger = 3, kAttributeType = 20;
constexpr uint64_t kAttributeTypeInteger = 2;
constexpr uint64_t kTensorType = 2, kTensorName = 8;

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

// Casts to FP16 are to FP32.
std::string node(std::string_view data) {
    bool cast = false;
    each_field(data, [&](const Field &field) { cast = cast || is(field, kNodeOperator, "Cast"); });
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
    each_field(data, [&](const Field &field) {
        std::string cast;
        if (field.is_bytes && field.number == kGraphNode) {
            put_bytes(rest, kGraphNode, node(field.content));
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
