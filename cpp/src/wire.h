// Protobuf's wire format, as far as ONNX files need it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace libris {

// A field has a number, and either a whole number or bytes, which are text or a message of its own.
struct Field {
    uint64_t number = 0;
    bool is_bytes = false;
    uint64_t value = 0;        // of a whole number
    std::string_view content;  // of bytes
    std::string_view raw;      // the field with its head
};

// What each_field throws where the bytes are no message.
class NoProtobuf {};

inline uint64_t varint(std::string_view data, size_t &at) {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        if (at >= data.size()) throw NoProtobuf();
        const auto byte = static_cast<unsigned char>(data[at++]);
        value |= static_cast<uint64_t>(byte & 127) << shift;
        if (byte < 128) return value;
    }
    throw NoProtobuf();
}

// Calls `visit` with each field of the message `data`, in order.
template <class Visit>
void each_field(std::string_view data, Visit visit) {
    for (size_t at = 0; at < data.size();) {
        const size_t start = at;
        const uint64_t tag = varint(data, at);
        // some readers drop the upper bits, and would see another field
        if (tag >> 32 != 0) throw NoProtobuf();
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

inline void put_varint(std::string &out, uint64_t value) {
    for (; value > 127; value >>= 7) out.push_back(static_cast<char>((value & 127) | 128));
    out.push_back(static_cast<char>(value));
}

inline void put_number(std::string &out, uint64_t field, uint64_t value) {
    put_varint(out, field << 3);
    put_varint(out, value);
}

inline void put_bytes(std::string &out, uint64_t field, std::string_view content) {
    put_varint(out, field << 3 | 2);
    put_varint(out, content.size());
    out.append(content);
}

inline bool is(const Field &field, uint64_t number, std::string_view content) {
    return field.is_bytes && field.number == number && field.content == content;
}

inline bool is(const Field &field, uint64_t number, uint64_t value) {
    return !field.is_bytes && field.number == number && field.value == value;
}

}  // namespace libris
