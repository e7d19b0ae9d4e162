// ris-infer in C++: masks of what expressions name in a picture. `ris-infer --help` says how.
#include "pictures.hpp"
#include "ris.hpp"

#include <chrono>
#include <filesystem>
#include <iostream>
#include <limits>
#include <set>

namespace {

const char *const kUsage = "usage: ris-infer BUNDLE IMAGE EXPRESSION... [options]\n";
const char *const kHelp =
    "\nWrites a mask (0 and 255) and an overlay for each expression: "
    "PNG, or PGM and PPM where built without libpng.\n"
    R"(Reads PNG, JPEG (as built) and PPM, turned upright as their EXIF orientation says.

Options:
  --category NAME    for a model that asks by category, once for each expression
  --providers WHICH  cpu, cuda or tensorrt, then exceptions by graph, whose names -v says:
                     cuda,NAME=cpu; cuda:1 is the second GPU
  --engine-cache F   folder in which the provider tensorrt keeps compiled engines
  --out FOLDER       where the files go; made if need be (default: ris-output)
  --threads N        CPU threads of a graph (default: all cores)
  --form NAME        for a model that asks in forms: phrase, or sentence
  --seed N           for a model that takes random numbers: what they are drawn from
  --draws K          for such a model: average the logits of K draws
  --no-verify        do not check the bundle's hashes
  -v                 say what runs where, and how long it took

Examples:
  ris-infer ris-bundle photo.jpg "left man"
  ris-infer ris-bundle photo.jpg "left man" "the dog" --out masks -v
  ris-infer bundle photo.jpg "left man" --category person
  ris-infer bundle photo.jpg "left man" --providers cuda
)";

// "Left man!" -> "left-man"
std::string slug(const std::string &text) {
    std::string out;
    for (const char c : text) {
        const bool digit = c >= '0' && c <= '9';
        const bool small = c >= 'a' && c <= 'z';
        const bool capital = c >= 'A' && c <= 'Z';
        if (digit || small) out += c;
        else if (capital) out += static_cast<char>(c - 'A' + 'a');
        else if (!out.empty() && out.back() != '-') out += '-';
    }
    out = out.substr(0, 40);
    while (!out.empty() && out.back() == '-') out.pop_back();
    return out.empty() ? "expression" : out;
}

int whole_number(const std::string &text, const std::string &option) {
    const bool digits = text.find_first_not_of("0123456789") == std::string::npos;
    const long long value = text.empty() || text.size() > 10 || !digits ? -1 : std::stoll(text);
    if (value < 0 || value > std::numeric_limits<int>::max()) {
        throw std::runtime_error(option + " needs a whole number from 0 to 2147483647, got '" +
                                 text + "'");
    }
    return static_cast<int>(value);
}

// Takes out what the model cannot read, with its category, and says so of each. Returns whether
// there was any.
bool drop_unreadable(const ris::Model &model, std::vector<std::string> &expressions,
                     std::vector<std::string> &categories, const std::string &form) {
    const bool paired = categories.size() == expressions.size();
    std::vector<std::string> kept, kept_categories;
    for (std::size_t i = 0; i < expressions.size(); ++i) {
        try {
            model.tokenize(expressions[i], form);
        } catch (const ris::Error &error) {
            if (error.status() != RIS_ERROR_EXPRESSION) throw;
            std::cerr << "ris-infer: expression " << i + 1 << ": " << error.what() << "\n";
            continue;
        }
        kept.push_back(expressions[i]);
        if (paired) kept_categories.push_back(categories[i]);
    }
    const bool dropped = kept.size() < expressions.size();
    expressions = std::move(kept);
    if (paired) categories = std::move(kept_categories);
    return dropped;
}

class Clock {
public:
    double lap() {
        const auto now = std::chrono::steady_clock::now();
        const double seconds = std::chrono::duration<double>(now - last_).count();
        last_ = now;
        return seconds;
    }

private:
    std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

int run(int argc, char **argv) {
    std::vector<std::string> words;
    ris::Options options;
    ris::Ask how;
    std::string out = "ris-output", providers, engine_cache;
    bool verbose = false;
    for (int i = 1; i < argc; ++i) {
        const std::string word = argv[i];
        const auto value = [&] {
            if (i + 1 == argc) throw std::runtime_error(word + " needs a value");
            return std::string(argv[++i]);
        };
        if (word == "--help" || word == "-h") {
            std::cout << kUsage << kHelp;
            return 0;
        }
        if (word == "--category") how.categories.push_back(value());
        else if (word == "--providers") providers = value();
        else if (word == "--engine-cache") engine_cache = value();
        else if (word == "--out") out = value();
        else if (word == "--threads") options.threads = whole_number(value(), word);
        else if (word == "--form") how.form = value();
        else if (word == "--seed") how.seed = whole_number(value(), word);
        else if (word == "--draws") how.draws = whole_number(value(), word);
        else if (word == "--no-verify") options.verify = 0;
        else if (word == "-v") verbose = true;
        else if (word.rfind("-", 0) != 0) words.push_back(word);
        else throw std::runtime_error("there is no option " + word + "; see --help");
    }
    if (words.size() < 3) {
        std::cerr << kUsage << "Try 'ris-infer --help'.\n";
        return 2;
    }
    if (!providers.empty()) options.providers = providers.c_str();
    if (!engine_cache.empty()) options.engine_cache = engine_cache.c_str();
    std::vector<std::string> expressions(words.begin() + 2, words.end());

    Clock clock;
    const ris::Model model(words[0], options);
    const double opened = clock.lap();
    const bool dropped = drop_unreadable(model, expressions, how.categories, how.form);
    if (expressions.empty()) return 2;
    const pictures::Picture picture = pictures::read(words[1]);
    const double read = clock.lap();
    const ris::Scene scene = model.encode_image(picture.rgb.data(), picture.width, picture.height);
    const double encoded = clock.lap();
    const ris::Result result = scene.ask(expressions, how);
    const double asked = clock.lap();

    if (model.info().find("\"trained\": false") != std::string::npos) {
        std::cerr << "The model is untrained (made-up weights): the masks mean nothing\n";
    }
    std::filesystem::create_directories(out);
    const std::string stem = std::filesystem::path(words[1]).stem().string();
    std::set<std::string> used;
    for (std::size_t i = 0; i < result.size(); ++i) {
        const ris::Answer answer = result[i];
        const std::string base = stem + "." + slug(expressions[i]);
        std::string name = base;
        for (int count = 2; !used.insert(name).second; ++count) {
            name = base + "-" + std::to_string(count);
        }
        name = (std::filesystem::path(out) / name).string();

        std::vector<std::uint8_t> grey(answer.mask, answer.mask + picture.pixels());
        for (std::uint8_t &value : grey) value = value != 0 ? 255 : 0;
        const std::vector<std::uint8_t> shown = pictures::overlay(picture, answer.mask, i);

        std::cout << pictures::write(name + ".mask", grey, answer.width, answer.height, 1) << "  "
                  << pictures::write(name + ".overlay", shown, answer.width, answer.height, 3)
                  << (answer.is_no_target != 0 ? "  no target" : "") << "  score " << answer.score;
        if (answer.no_target >= 0) std::cout << "  no-target probability " << answer.no_target;
        std::cout << "\n";
        if (answer.notes[0] != '\0') std::cerr << expressions[i] << ": " << answer.notes << "\n";
    }
    if (verbose) {
        std::cerr << model.info() << "\nseconds: open " << opened << ", read " << read
                  << ", encode " << encoded << ", ask " << asked << "\n";
    }
    return dropped ? 2 : 0;
}

}  // namespace

int main(int argc, char **argv) {
    try {
        return run(argc, argv);
    } catch (const std::exception &error) {
        std::cerr << "ris-infer: " << error.what() << "\n";
        return 2;
    }
}
