#include "widen.h"

#include "error.h"

#include <cstdint>
#include <string_view>

namespace libris {
namespace {

// Protobuf's wire format: a field has a number, and either a whole number or bytes, which are text
// or a message of its own.
struct Field {
    uint64_t number = 0;
    bool is_bytes = false;
    uint64_t value = 0;        // of a whole number
    std::string_view content;  // of bytes
    std::string_view raw;      // the field with its head
};

constexpr uint64_t kFloat = 1, kFloat16 = 10;
constexpr uint64_t kModelGraph = 7, kGraphNode = 1, kGraphInitializer = 5;
constexpr uint64_t kNodeInput = 1, kNodeOutput = 2, kNodeName = 3, kNodeOperator = 4;
constexpr uint64_t kNodeAttribute = 5;
constexpr uint64_t kAttributeName = 1, kAttributeInteger = 3, kAttributeType = 20;
constexpr uint64_t kAttributeTypeInteger = 2;
constexpr uint64_t kTensorType = 2, kTensorName = 8;

class NoProtobuf {};

uint64_t varint(std::string_view data, size_t &at) {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        if (at >= data.size()) throw NoProtobuf();
        const auto byte = static_cast<unsigned char>(data[at++]);
        value |= static_cast<uint64_t>(byte & 127) << shift;
        if (byte < 128) return value;
    }
    throw NoProtobuf();
}

template <class Visit>
void each_field(std::string_view data, Visit visit) {
    for (size_t at = 0; at < data.size();) {
        const size_t start = at;
        const uint64_t tag = varint(data, at);
        Field field;
        field.number = tag >> 3;
        uint64_t skip = 0;
        switch (tag & 7) {
            case 0: field.value = varint(data, at); break;
            case 1: skip = 8; break;
            case 2: skip = varint(data, at); break;
            case 5: skip = 4; break;
            default: throw NoProtobuf();
        }
        field.is_bytes = (tag & 7) == 2;
        if (skip > data.size() - at) throw NoProtobuf();
        if (field.is_bytes) field.content = data.substr(at, skip);
        at += skip;
        field.raw = data.substr(start, at - start);
        visit(field);
    }
}

void put_varint(std::string &out, uint64_t value) {
    for (; value > 127; value >>= 7) out.push_back(static_cast<char>((value & 127) | 128));
    out.push_back(static_cast<char>(value));
}

void put_number(std::string &out, uint64_t field, uint64_t value) {
    put_varint(out, field << 3);
    put_varint(out, value);
}

void put_bytes(std::string &out, uint64_t field, std::string_view content) {
    put_varint(out, field << 3 | 2);
    put_varint(out, content.size());
    out.append(content);
}

bool is(const Field &field, uint64_t number, std::string_view content) {
    return field.is_bytes && field.number == number && field.content == content;
}

bool is(const Field &field, uint64_t number, uint64_t value) {
    return !field.is_bytes && field.number == number && field.value == value;
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
