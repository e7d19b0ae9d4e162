#include "image.h"

#include "interpolate.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <tuple>

namespace libris {
namespace {

constexpr int kBits = 22;  // 32, less 8 of the pixel and 2 of headroom
constexpr size_t kChannels = 3;

// Which source pixels an output is a weighted mean of, and the weights in fixed point.
struct Window {
    int first;
    std::vector<int32_t> weight;
};

// Pillow's filters at a distance of so many source pixels, or target pixels where an image shrinks.
double weight_at(double distance, Interpolation filter) {
    if (filter == Interpolation::bilinear) return distance < 1 ? 1 - distance : 0;
    constexpr double a = -0.5;
    if (distance < 1) return ((a + 2) * distance - (a + 3)) * distance * distance + 1;
    if (distance < 2) return (((distance - 5) * distance + 8) * distance - 4) * a;
    return 0;
}

std::vector<Window> windows(int source, int target, Interpolation filter) {
    const double scale = static_cast<double>(source) / target;
    const double step = std::max(scale, 1.0);
    const double reach = filter == Interpolation::bicubic ? 2 : 1;
    const double support = reach * step;  // the filter's half width in source pixels
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
            exact.push_back(weight_at(std::abs((x - centre + 0.5) * (1.0 / step)), filter));
            sum += exact.back();
        }
        Window window{first, {}};
        for (const double weight : exact) {
            const double share = (sum != 0 ? weight / sum : weight) * (1 << kBits);
            window.weight.push_back(static_cast<int32_t>(share + (share < 0 ? -0.5 : 0.5)));
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

// The middle square of levels.
Levels middle(const Levels &levels, Size whole, int side) {
    const size_t row = kChannels * static_cast<size_t>(whole.width);
    const size_t part = kChannels * static_cast<size_t>(side);
    const size_t top = static_cast<size_t>((whole.height - side) / 2);
    const size_t left = kChannels * static_cast<size_t>((whole.width - side) / 2);
    Levels found(static_cast<size_t>(side) * part);
    for (size_t y = 0; y < static_cast<size_t>(side); ++y) {
        std::memcpy(&found[y * part], &levels[(top + y) * row + left], part);
    }
    return found;
}

// The picture's levels as one of the host's images has them.
Levels fitted(const Image &image, const HostImage &one) {
    const Size picture{image.height, image.width};
    if (!one.is_crop()) {
        const Size size = one.fitted(picture);
        return resize_pillow(image, size.width, size.height, one.filter);
    }
    const Size whole = covering_size(picture, one.size);
    return middle(resize_pillow(image, whole.width, whole.height, one.filter), whole, one.size);
}

}  // namespace

std::vector<uint8_t> resize_pillow(const Image &image, int width, int height,
                                   Interpolation filter) {
    const size_t out_stride = kChannels * static_cast<size_t>(width);
    const std::vector<Window> columns = windows(image.width, width, filter);
    const std::vector<Window> rows = windows(image.height, height, filter);
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
    using Way = std::tuple<std::string, int, Interpolation>;
    std::map<Way, Levels> resizes;  // of the picture
    const auto levels_of = [&](const HostImage &one) -> const Levels & {
        const auto [found, is_new] = resizes.insert({{one.fit, one.size, one.filter}, {}});
        if (is_new) found->second = fitted(image, one);
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
