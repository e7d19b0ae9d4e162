#include "image.h"

#include "interpolate.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <utility>

namespace libris {
namespace {

constexpr int kBits = 22;  // 32, less 8 of the pixel and 2 of headroom
constexpr size_t kChannels = 3;

// Which source pixels an output is a weighted mean of, and the weights in fixed point.
struct Window {
    int first;
    std::vector<int32_t> weight;
};

std::vector<Window> windows(int source, int target) {
    const double scale = static_cast<double>(source) / target;
    const double support = std::max(scale, 1.0);  // the triangle's half width in source pixels
    std::vector<Window> all;
    all.reserve(static_cast<size_t>(target));
    std::vector<double> exact;
    for (int i = 0; i < target; ++i) {
        const double centre = (i + 0.5) * scale;
        const int first = std::max(static_cast<int>(centre - support + 0.5), 0);
        const int last = std::min(static_cast<int>(centre + support + 0.5), source);
        exact.clear();
        double sum = 0;
        for (int x = first; x < last; ++x) {
            const double distance = std::abs((x - centre + 0.5) * (1.0 / support));
            exact.push_back(distance < 1 ? 1 - distance : 0);
            sum += exact.back();
        }
        Window window{first, {}};
        for (const double weight : exact) {
            window.weight.push_back(
                static_cast<int32_t>(0.5 + (sum != 0 ? weight / sum : weight) * (1 << kBits)));
        }
        all.push_back(std::move(window));
    }
    return all;
}

constexpr int32_t kHalf = 1 << (kBits - 1);  // rounds

uint8_t to_byte(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kBits, 0, 255)); }

void resize_row(const uint8_t *from, const std::vector<Window> &columns, uint8_t *to) {
    for (const Window &window : columns) {
        int32_t red = kHalf, green = kHalf, blue = kHalf;
        const uint8_t *pixel = from + kChannels * static_cast<size_t>(window.first);
        for (const int32_t weight : window.weight) {
            red += pixel[0] * weight;
            green += pixel[1] * weight;
            blue += pixel[2] * weight;
            pixel += kChannels;
        }
        *to++ = to_byte(red);
        *to++ = to_byte(green);
        *to++ = to_byte(blue);
    }
}

// The weighted mean of a window's rows; row_at(i) is row i, of as many bytes as there are sums.
template <class RowAt>
void mean_of_rows(const Window &window, RowAt row_at, std::vector<int32_t> &sums, uint8_t *to) {
    std::fill(sums.begin(), sums.end(), kHalf);
    size_t row = static_cast<size_t>(window.first);
    for (const int32_t weight : window.weight) {
        const uint8_t *from = row_at(row++);
        for (size_t x = 0; x < sums.size(); ++x) sums[x] += from[x] * weight;
    }
    std::transform(sums.begin(), sums.end(), to, to_byte);
}

using Levels = std::vector<uint8_t>;  // [height, width, 3]

// size: what of the image the levels [height, width, 3] are of; the rest is zeros.
std::vector<float> normalised(const Levels &levels, Size size, const HostImage &wanted) {
    const size_t side = static_cast<size_t>(wanted.size), plane = side * side;
    const size_t height = static_cast<size_t>(size.height), width = static_cast<size_t>(size.width);
    std::vector<float> planes(kChannels * plane);
    for (size_t channel = 0; channel < kChannels; ++channel) {
        float level[256];
        for (int i = 0; i < 256; ++i) {
            const float value = static_cast<float>(i);
            level[i] = ((wanted.levels == 1 ? value / 255.0f : value) - wanted.mean[channel]) /
                       wanted.std[channel];
        }
        float *to = &planes[channel * plane];
        const uint8_t *from = &levels[channel];
        for (size_t y = 0; y < height; ++y, to += side) {
            for (size_t x = 0; x < width; ++x, from += kChannels) to[x] = level[*from];
        }
    }
    return planes;
}

// A square of levels, resized without antialiasing.
std::vector<float> sampled(const Image &levels, const HostImage &wanted) {
    // rows first, then columns, each tap after tap: the order in which Python rounds
    const Taps rows(levels.height, wanted.size, wanted.filter);
    const Taps columns(levels.width, wanted.size, wanted.filter);
    const size_t small = static_cast<size_t>(wanted.size), taps = static_cast<size_t>(rows.count);
    const float white = wanted.levels == 1 ? 255.0f : 1.0f;
    std::vector<float> planes(kChannels * small * small);
    const size_t row = kChannels * static_cast<size_t>(levels.width);
    std::vector<float> line(row);
    for (size_t y = 0; y < small; ++y) {
        std::fill(line.begin(), line.end(), 0.0f);
        for (size_t tap = y * taps; tap < (y + 1) * taps; ++tap) {
            const uint8_t *from = levels.rgb + static_cast<size_t>(rows.index[tap]) * levels.stride;
            const float weight = rows.weight[tap];
            for (size_t x = 0; x < row; ++x) line[x] += static_cast<float>(from[x]) * weight;
        }
        for (size_t x = 0; x < small; ++x) {
            for (size_t channel = 0; channel < kChannels; ++channel) {
                float sum = 0;
                for (size_t tap = x * taps; tap < (x + 1) * taps; ++tap) {
                    sum += line[static_cast<size_t>(columns.index[tap]) * kChannels + channel] *
                           columns.weight[tap];
                }
                planes[(channel * small + y) * small + x] =
                    (sum / white - wanted.mean[channel]) / wanted.std[channel];
            }
        }
    }
    return planes;
}

}  // namespace

std::vector<uint8_t> resize_pillow(const Image &image, int width, int height) {
    const size_t out_stride = kChannels * static_cast<size_t>(width);
    const std::vector<Window> columns = windows(image.width, width);
    const std::vector<Window> rows = windows(image.height, height);
    std::vector<uint8_t> out(static_cast<size_t>(height) * out_stride);
    const auto source_row = [&](size_t row) { return image.rgb + row * image.stride; };

    // an image that is shrunk much more in height: Pillow 13 resizes it in height first, which
    // rounds otherwise
    if (image.height - height > 2 * std::max(image.width - width, 0)) {
        std::vector<uint8_t> line(kChannels * static_cast<size_t>(image.width));
        std::vector<int32_t> sums(line.size());
        for (size_t y = 0; y < rows.size(); ++y) {
            mean_of_rows(rows[y], source_row, sums, line.data());
            if (image.width == width) {
                std::copy(line.begin(), line.end(), &out[y * out_stride]);
            } else {
                resize_row(line.data(), columns, &out[y * out_stride]);
            }
        }
        return out;
    }

    size_t most = 1;
    for (const Window &window : rows) most = std::max(most, window.weight.size());

    // rows of the right width, as many as one output row is made from, so that an image of any
    // shape needs little memory
    std::vector<uint8_t> ring(most * out_stride);
    size_t ready = 0;
    std::vector<int32_t> sums(out_stride);
    for (size_t y = 0; y < rows.size(); ++y) {
        const size_t first = static_cast<size_t>(rows[y].first);
        const size_t last = first + rows[y].weight.size();
        for (ready = std::max(ready, first); ready < last; ++ready) {
            uint8_t *to = &ring[ready % most * out_stride];
            const uint8_t *from = source_row(ready);
            if (image.width == width) {
                std::memcpy(to, from, out_stride);
            } else {
                resize_row(from, columns, to);
            }
        }
        if (image.height == height) {
            std::memcpy(&out[y * out_stride], &ring[y % most * out_stride], out_stride);
            continue;
        }
        const auto ring_row = [&](size_t row) { return &ring[row % most * out_stride]; };
        mean_of_rows(rows[y], ring_row, sums, &out[y * out_stride]);
    }
    return out;
}

std::vector<std::vector<float>> prepare_images(const Image &image,
                                               const std::vector<HostImage> &wanted) {
    std::map<std::pair<int, int>, Levels> resizes;  // of the picture, by height and width
    const auto levels_of = [&](const HostImage &one) -> const Levels & {
        const Size size = one.fitted({image.height, image.width});
        const auto [found, is_new] = resizes.insert({{size.height, size.width}, {}});
        if (is_new) found->second = resize_pillow(image, size.width, size.height);
        return found->second;
    };
    std::vector<std::vector<float>> images;
    for (const HostImage &one : wanted) {
        if (one.antialias) {
            const Size size = one.fitted({image.height, image.width});
            images.push_back(normalised(levels_of(one), size, one));
        } else if (one.is_of_picture()) {
            images.push_back(sampled(image, one));
        } else {
            const HostImage &of = *named(wanted, one.of);
            const size_t stride = kChannels * static_cast<size_t>(of.size);
            images.push_back(sampled({levels_of(of).data(), of.size, of.size, stride}, one));
        }
    }
    return images;
}

}  // namespace libris
