#include "external.h"

#include "error.h"
#include "wire.h"

namespace libris {
namespace {

// What a message of an ONNX file is, as far as tensors lie below it.
enum class Kind {
    other,
    model,
    training,
    function,
    graph,
    node,
    attribute,
    sparse_tensor,
    tensor,
    entry
};

constexpr int kDeepest = 64;  // graphs in graphs; a deeper file could overflow the stack
constexpr uint64_t kEntryKey = 1, kEntryValue = 2;

// The kind of a field, by its number in onnx.proto.
Kind kind_of(Kind parent, uint64_t number) {
    switch (parent) {
        case Kind::model:
            return number == 7    ? Kind::graph
                   : number == 20 ? Kind::training
                   : number == 25 ? Kind::function
                                  : Kind::other;
        case Kind::training: return number == 1 || number == 2 ? Kind::graph : Kind::other;
        case Kind::function:
            return number == 7 ? Kind::node : number == 11 ? Kind::attribute : Kind::other;
        case Kind::graph:
            return number == 1    ? Kind::node
                   : number == 5  ? Kind::tensor
                   : number == 15 ? Kind::sparse_tensor
                                  : Kind::other;
        case Kind::node: return number == 5 ? Kind::attribute : Kind::other;
        case Kind::attribute:
            return number == 5 || number == 10    ? Kind::tensor
                   : number == 6 || number == 11  ? Kind::graph
                   : number == 22 || number == 23 ? Kind::sparse_tensor
                                                  : Kind::other;
        case Kind::sparse_tensor: return number == 1 || number == 2 ? Kind::tensor : Kind::other;
        case Kind::tensor: return number == 13 ? Kind::entry : Kind::other;
        case Kind::entry:
        case Kind::other: break;
    }
    return Kind::other;
}

// Whether an entry of a tensor's external_data says where the data lies.
bool is_location(std::string_view entry) {
    bool found = false;
    each_field(entry,
               [&](const Field &field) { found = found || is(field, kEntryKey, "location"); });
    return found;
}

void collect(std::string_view data, Kind kind, int depth, std::set<std::string> &found) {
    if (depth > kDeepest) throw NoProtobuf();
    if (kind == Kind::entry && !is_location(data)) return;
    each_field(data, [&](const Field &field) {
        if (!field.is_bytes) return;
        if (kind == Kind::entry && field.number == kEntryValue) found.emplace(field.content);
        const Kind inner = kind_of(kind, field.number);
        if (inner != Kind::other) collect(field.content, inner, depth + 1, found);
    });
}

std::string rewritten(std::string_view data, Kind kind,
                      const std::function<std::string(const std::string &)> &renamed) {
    if (kind == Kind::entry && !is_location(data)) return std::string(data);
    std::string out;
    each_field(data, [&](const Field &field) {
        const Kind inner = field.is_bytes ? kind_of(kind, field.number) : Kind::other;
        if (field.is_bytes && kind == Kind::entry && field.number == kEntryValue) {
            put_bytes(out, kEntryValue, renamed(std::string(field.content)));
        } else if (inner != Kind::other) {
            put_bytes(out, field.number, rewritten(field.content, inner, renamed));
        } else {
            out.append(field.raw);
        }
    });
    return out;
}

Error no_onnx(const std::string &path) {
    return Error(RIS_ERROR_BUNDLE,
                 path + " is not an ONNX file that can be read; export the bundle again");
}

}  // namespace

std::set<std::string> data_files(const std::string &onnx, const std::string &path) {
    try {
        std::set<std::string> found;
        collect(onnx, Kind::model, 0, found);
        return found;
    } catch (const NoProtobuf &) {
        throw no_onnx(path);
    }
}

std::string with_data_files(const std::string &onnx, const std::string &path,
                            const std::function<std::string(const std::string &)> &renamed) {
    data_files(onnx, path);  // it is ONNX, and no deeper than the stack
    return rewritten(onnx, Kind::model, renamed);
}

}  // namespace libris
