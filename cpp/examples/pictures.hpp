// Pictures for libris's examples: reads PNG, JPEG and PPM files as upright RGB, as the Python
// runtime does, and writes masks and overlays. Define RIS_WITH_PNG and RIS_WITH_JPEG where libpng
// and libjpeg are. Throws std::runtime_error.
#pragma once

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <limits>
#include <locale>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#ifdef RIS_WITH_PNG
#include <png.h>
#endif
#ifdef RIS_WITH_JPEG
#include <jerror.h>
#include <jpeglib.h>
#endif

namespace pictures {

/// 8-bit RGB, rows without padding, the top row first.
struct Picture {
    std::int32_t width = 0, height = 0;
    std::vector<std::uint8_t> rgb;

    std::size_t pixels() const {
        return static_cast<std::size_t>(width) * static_cast<std::size_t>(height);
    }

    void resize(unsigned long w, unsigned long h, const std::string &path) {
        if (w < 1 || h < 1 || w > 1'000'000 || h > 120'000'000 / w) {
            throw std::runtime_error(path + " is " + std::to_string(w) + "x" + std::to_string(h) +
                                     " pixels; the limit is 120 megapixels");
        }
        width = static_cast<std::int32_t>(w);
        height = static_cast<std::int32_t>(h);
        rgb.resize(3 * pixels());
    }
};

/// The orientation, 1 to 8, in an EXIF block that begins with its byte order ("II" or "MM"). 0
/// where it has no entry that is one 16-bit number of that range. No other entry is looked at.
inline int exif_orientation(const std::uint8_t *data, std::size_t size) {
    if (size < 8 || data[0] != data[1] || (data[0] != 'I' && data[0] != 'M')) return 0;
    const bool little = data[0] == 'I';
    // `at` + `bytes` is at most `size`
    const auto number = [&](std::size_t at, std::size_t bytes) {
        std::size_t value = 0;
        for (std::size_t i = 0; i < bytes; ++i) {
            value = value << 8 | data[at + (little ? bytes - 1 - i : i)];
        }
        return value;
    };

    constexpr std::size_t kOrientation = 0x0112, kShort = 3, kEntry = 12;
    const std::size_t directory = number(4, 4);
    if (number(2, 2) != 42 || directory > size || size - directory < 2) return 0;
    const std::size_t entries = std::min(number(directory, 2), (size - directory - 2) / kEntry);
    for (std::size_t i = 0; i < entries; ++i) {
        const std::size_t entry = directory + 2 + i * kEntry;
        if (number(entry, 2) != kOrientation) continue;
        const std::size_t value = number(entry + 8, 2);
        const bool is_one = number(entry + 2, 2) == kShort && number(entry + 4, 4) == 1;
        return is_one && value >= 1 && value <= 8 ? static_cast<int>(value) : 0;
    }
    return 0;
}

/// Whether an EXIF block has the six bytes ahead of it that JPEG files have.
inline bool starts_with_exif(const std::uint8_t *data, std::size_t size) {
    // the literal has a second 0
    return size >= 6 && std::equal(data, data + 6, "Exif\0");
}

/// The orientation, 1 to 8, that an XMP packet states. 0 where it states none.
inline int xmp_orientation(const std::string &packet) {
    const std::string name = "tiff:Orientation";
    for (std::size_t at = packet.find(name); at != std::string::npos;
         at = packet.find(name, at + 1)) {
        const std::string rest = packet.substr(at + name.size(), 3);
        for (const std::string before : {"=\"", "='", ">"}) {
            const std::size_t digit = before.size();
            const bool found = rest.compare(0, digit, before) == 0 && rest.size() > digit;
            if (found && rest[digit] >= '1' && rest[digit] <= '8') return rest[digit] - '0';
        }
    }
    return 0;
}

/// As a viewer shows a picture that has this orientation.
inline Picture upright(Picture from, int orientation) {
    if (orientation < 2 || orientation > 8) return from;
    const std::size_t width = static_cast<std::size_t>(from.width);
    const std::size_t height = static_cast<std::size_t>(from.height);
    const auto is = [&](int a, int b, int c, int d) {
        return orientation == a || orientation == b || orientation == c || orientation == d;
    };
    const bool turned = orientation >= 5;  // rows become columns
    const bool flip_x = is(2, 3, 7, 8), flip_y = is(3, 4, 6, 7);

    Picture to;
    to.width = turned ? from.height : from.width;
    to.height = turned ? from.width : from.height;
    to.rgb.resize(from.rgb.size());
    std::uint8_t *out = to.rgb.data();
    for (std::size_t y = 0; y < (turned ? width : height); ++y) {
        for (std::size_t x = 0; x < (turned ? height : width); ++x, out += 3) {
            const std::size_t column = turned ? y : x, row = turned ? x : y;
            const std::size_t from_column = flip_x ? width - 1 - column : column;
            const std::size_t from_row = flip_y ? height - 1 - row : row;
            std::copy_n(&from.rgb[3 * (from_row * width + from_column)], 3, out);
        }
    }
    return to;
}

struct CloseFile {
    void operator()(std::FILE *file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

inline File open_file(const std::string &path, const char *mode) {
    File file(std::fopen(path.c_str(), mode));
    if (!file) throw std::runtime_error(path + " cannot be opened");
    return file;
}

#ifdef RIS_WITH_PNG
namespace detail {

// libpng tells errors by a call that must not return: it jumps back, and must not jump over an
// object that has a destructor.
struct Png {
    png_structp png;
    png_infop info = nullptr;
    std::string message;
    int orientation = 0;

    Png()
        : png(png_create_read_struct(
              PNG_LIBPNG_VER_STRING, this,
              [](png_structp from, png_const_charp text) {
                  static_cast<Png *>(png_get_error_ptr(from))->message = text;
                  png_longjmp(from, 1);
              },
              [](png_structp, png_const_charp) {})) {
        if (png != nullptr) info = png_create_info_struct(png);
        if (info == nullptr) throw std::bad_alloc();
    }
    Png(const Png &) = delete;
    Png &operator=(const Png &) = delete;
    ~Png() { png_destroy_read_struct(&png, &info, nullptr); }

    // Of the EXIF block, or else of the XMP packet or the block that ImageMagick writes as text.
    void read_orientation() {
        png_bytep exif = nullptr;
        png_uint_32 size = 0;
        if (png_get_eXIf_1(png, info, &size, &exif) != 0) {
            orientation = exif_orientation(exif, size);
        }
        png_textp texts = nullptr;
        const int count = png_get_text(png, info, &texts, nullptr);
        for (int i = 0; i < count && orientation == 0; ++i) {
            const std::size_t length = std::max(texts[i].text_length, texts[i].itxt_length);
            const std::string text(texts[i].text, length);
            const std::string key = texts[i].key;
            if (key == "Raw profile type exif") orientation = text_orientation(text);
            if (key == "XML:com.adobe.xmp") orientation = xmp_orientation(text);
        }
    }

    // A newline, the kind, the length, and the block in hexadecimal, in lines.
    static int text_orientation(const std::string &text) {
        std::size_t start = 0;
        for (int line = 0; line < 3 && start != std::string::npos; ++line) {
            start = text.find('\n', start);
            if (start != std::string::npos) ++start;
        }
        std::vector<std::uint8_t> block;
        int high = -1;
        for (std::size_t i = start; i < text.size(); ++i) {
            const int digit = digit_of(text[i]);
            if (digit < 0) continue;
            if (high >= 0) block.push_back(static_cast<std::uint8_t>(high << 4 | digit));
            high = high >= 0 ? -1 : digit;
        }
        const std::size_t head = starts_with_exif(block.data(), block.size()) ? 6 : 0;
        return exif_orientation(block.data() + head, block.size() - head);
    }

    static int digit_of(char c) {
        if (c >= '0' && c <= '9') return c - '0';
        if (c >= 'a' && c <= 'f') return c - 'a' + 10;
        return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    }
};

}  // namespace detail

inline Picture read_png(const std::string &path) {
    Picture picture;
    const File file = open_file(path, "rb");
    detail::Png reader;
    std::vector<std::uint8_t> pixels;
    std::vector<png_bytep> rows;
    if (setjmp(png_jmpbuf(reader.png)) != 0) throw std::runtime_error(path + ": " + reader.message);

    png_init_io(reader.png, file.get());
    png_read_info(reader.png, reader.info);
    const png_uint_32 width = png_get_image_width(reader.png, reader.info);
    const png_uint_32 height = png_get_image_height(reader.png, reader.info);
    picture.resize(width, height, path);

    const bool grey = png_get_color_type(reader.png, reader.info) == PNG_COLOR_TYPE_GRAY;
    png_set_expand(reader.png);
    if (png_get_bit_depth(reader.png, reader.info) == 16) {
        // rounded for grey, cut for colours: as Pillow has them
        if (grey) png_set_scale_16(reader.png);
        else png_set_strip_16(reader.png);
    }
    png_set_gray_to_rgb(reader.png);
    png_set_interlace_handling(reader.png);
    png_read_update_info(reader.png, reader.info);

    const std::size_t channels = png_get_channels(reader.png, reader.info);
    const std::size_t stride = png_get_rowbytes(reader.png, reader.info);
    pixels.resize(stride * height);
    for (std::size_t y = 0; y < height; ++y) rows.push_back(&pixels[y * stride]);
    png_read_image(reader.png, rows.data());
    png_read_end(reader.png, reader.info);
    reader.read_orientation();

    for (std::size_t i = 0; i < picture.pixels(); ++i) {
        const std::uint8_t *from = &pixels[i * channels];
        const unsigned alpha = channels == 4 ? from[3] : 255;
        for (std::size_t c = 0; c < 3; ++c) {  // over white, rounded
            const unsigned sum = from[c] * alpha + 255 * (255 - alpha) + 128;
            picture.rgb[3 * i + c] = static_cast<std::uint8_t>((sum + (sum >> 8)) >> 8);
        }
    }
    return upright(std::move(picture), reader.orientation);
}
#endif

#ifdef RIS_WITH_JPEG
namespace detail {

// As with libpng, an error is a jump back.
struct Jpeg {
    jpeg_decompress_struct info{};
    jpeg_error_mgr errors{};
    std::jmp_buf back;
    char message[JMSG_LENGTH_MAX] = "";
    bool cut_short = false;
    int orientation = 0;

    Jpeg() {
        info.err = jpeg_std_error(&errors);
        info.client_data = this;
        errors.error_exit = [](j_common_ptr from) {
            Jpeg *self = static_cast<Jpeg *>(from->client_data);
            from->err->format_message(from, self->message);
            std::longjmp(self->back, 1);
        };
        errors.emit_message = [](j_common_ptr from, int level) {
            Jpeg *self = static_cast<Jpeg *>(from->client_data);
            if (level < 0 && from->err->msg_code == JWRN_JPEG_EOF) self->cut_short = true;
        };
    }
    Jpeg(const Jpeg &) = delete;
    Jpeg &operator=(const Jpeg &) = delete;
    ~Jpeg() { jpeg_destroy_decompress(&info); }

    // Of the EXIF block, or else of the XMP packet.
    void read_orientation() {
        const std::string xmp("http://ns.adobe.com/xap/1.0/", 29);  // with a 0 at its end
        int by_xmp = 0;
        for (const auto *marker = info.marker_list; marker != nullptr; marker = marker->next) {
            const JOCTET *data = marker->data;
            const std::size_t size = marker->data_length;
            if (orientation == 0 && starts_with_exif(data, size)) {
                orientation = exif_orientation(data + 6, size - 6);
            } else if (size > xmp.size() && std::equal(xmp.begin(), xmp.end(), data)) {
                by_xmp = xmp_orientation({data + xmp.size(), data + size});
            }
        }
        if (orientation == 0) orientation = by_xmp;
    }
};

}  // namespace detail

inline Picture read_jpeg(const std::string &path) {
    Picture picture;
    const File file = open_file(path, "rb");
    detail::Jpeg jpeg;
    if (setjmp(jpeg.back) != 0) throw std::runtime_error(path + ": " + jpeg.message);
    jpeg_create_decompress(&jpeg.info);
    jpeg_stdio_src(&jpeg.info, file.get());
    jpeg_save_markers(&jpeg.info, JPEG_APP0 + 1, 0xffff);
    jpeg_read_header(&jpeg.info, TRUE);
    jpeg.read_orientation();

    jpeg.info.out_color_space = JCS_RGB;
    jpeg_start_decompress(&jpeg.info);
    picture.resize(jpeg.info.output_width, jpeg.info.output_height, path);
    const std::size_t stride = 3 * static_cast<std::size_t>(picture.width);
    while (jpeg.info.output_scanline < jpeg.info.output_height) {
        JSAMPROW row = &picture.rgb[stride * jpeg.info.output_scanline];
        jpeg_read_scanlines(&jpeg.info, &row, 1);
    }
    if (jpeg.cut_short) throw std::runtime_error(path + " is damaged or cut short");
    return upright(std::move(picture), jpeg.orientation);
}
#endif

inline Picture read_ppm(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    file.imbue(std::locale::classic());  // whatever the program's locale makes of numbers
    std::string magic;
    unsigned long numbers[3] = {};
    file >> magic;
    for (unsigned long &number : numbers) {
        constexpr auto rest = std::numeric_limits<std::streamsize>::max();
        while (file >> std::ws && file.peek() == '#') file.ignore(rest, '\n');
        file >> number;
    }
    file.get();
    if (!file || magic != "P6" || numbers[2] != 255) {
        throw std::runtime_error(path + " is no picture that can be read (PPM"
#ifdef RIS_WITH_PNG
                                        ", PNG"
#endif
#ifdef RIS_WITH_JPEG
                                        ", JPEG"
#endif
                                        ")");
    }

    Picture picture;
    picture.resize(numbers[0], numbers[1], path);
    const auto size = static_cast<std::streamsize>(picture.rgb.size());
    if (!file.read(reinterpret_cast<char *>(picture.rgb.data()), size)) {
        throw std::runtime_error(path + " is cut short");
    }
    return picture;
}

/// Any of the formats, told apart by the first bytes.
inline Picture read(const std::string &path) {
    char magic[2] = {};
    std::ifstream file(path, std::ios::binary);
    if (!file.read(magic, 2)) throw std::runtime_error(path + ": no picture that can be read");
#ifdef RIS_WITH_PNG
    if (magic[0] == '\x89' && magic[1] == 'P') return read_png(path);
#endif
#ifdef RIS_WITH_JPEG
    if (magic[0] == '\xff' && magic[1] == '\xd8') return read_jpeg(path);
#endif
    return read_ppm(path);
}

/// Writes `stem`.png, or .pgm and .ppm where there is no libpng; returns the file's name.
/// channels: 1 for grey, 3 for RGB.
inline std::string write(const std::string &stem, const std::vector<std::uint8_t> &pixels,
                         std::int32_t width, std::int32_t height, int channels) {
#ifdef RIS_WITH_PNG
    const std::string path = stem + ".png";
    png_image png{};
    png.version = PNG_IMAGE_VERSION;
    png.width = static_cast<png_uint_32>(width);
    png.height = static_cast<png_uint_32>(height);
    png.format = channels == 1 ? PNG_FORMAT_GRAY : PNG_FORMAT_RGB;
    if (png_image_write_to_file(&png, path.c_str(), 0, pixels.data(), 0, nullptr) == 0) {
        throw std::runtime_error(path + ": " + png.message);
    }
#else
    const std::string path = stem + (channels == 1 ? ".pgm" : ".ppm");
    std::ofstream file(path, std::ios::binary);
    file.imbue(std::locale::classic());
    file << (channels == 1 ? "P5\n" : "P6\n") << width << " " << height << "\n255\n";
    file.write(reinterpret_cast<const char *>(pixels.data()),
               static_cast<std::streamsize>(pixels.size()));
    if (!file.flush()) throw std::runtime_error(path + " cannot be written");
#endif
    return path;
}

/// The picture with the mask tinted and its outline drawn.
/// mask: 1 inside, of the picture's size. turn: the expression's number, which gives the colour.
inline std::vector<std::uint8_t> overlay(const Picture &picture, const std::uint8_t *mask,
                                         std::size_t turn) {
    static constexpr std::uint8_t colours[6][3] = {{230, 57, 70},  {29, 132, 226}, {42, 157, 92},
                                                   {244, 162, 39}, {142, 68, 200}, {0, 180, 190}};
    const std::uint8_t *colour = colours[turn % 6];
    const std::size_t width = static_cast<std::size_t>(picture.width);
    const std::size_t height = static_cast<std::size_t>(picture.height);

    // the outline: what lies at most `radius` from outside in its row or column; the picture's
    // border is no edge
    const double quarter_percent = static_cast<double>(std::min(width, height)) / 400;
    const std::size_t radius = static_cast<std::size_t>(std::max(1L, std::lrint(quarter_percent)));
    std::vector<std::uint8_t> inner(mask, mask + width * height);
    const auto erode = [&](std::size_t first, std::size_t count, std::size_t step) {
        for (std::size_t i = 0; i < count; ++i) {
            if (mask[first + i * step] != 0) continue;
            const std::size_t last = std::min(count - 1, i + radius);
            const std::size_t start = i > radius ? i - radius : 0;
            for (std::size_t j = start; j <= last; ++j) inner[first + j * step] = 0;
        }
    };
    for (std::size_t y = 0; y < height; ++y) erode(y * width, width, 1);
    for (std::size_t x = 0; x < width; ++x) erode(x, height, width);

    std::vector<std::uint8_t> out = picture.rgb;
    for (std::size_t i = 0; i < width * height; ++i) {
        if (mask[i] == 0) continue;
        for (std::size_t c = 0; c < 3; ++c) {
            std::uint8_t &level = out[3 * i + c];
            const auto tinted = static_cast<std::uint8_t>((level + colour[c]) / 2);
            level = inner[i] == 0 ? colour[c] : tinted;
        }
    }
    return out;
}

}  // namespace pictures
