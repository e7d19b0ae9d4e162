#include "bundle.h"

#include "error.h"
#include "external.h"
#include "json.h"
#include "sha256.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <future>
#include <system_error>
#include <thread>

namespace libris {
namespace fs = std::filesystem;

namespace {

constexpr unsigned kHashThreads = 4;

// What is wrong with a file of the bundle; empty where nothing is.
std::string damage(const Bundle &bundle, const std::string &name, const std::string &sha256,
                   bool verify) {
    const std::string path = bundle.file(name);
    std::error_code error;
    if (!fs::is_regular_file(path, error)) return name + " is missing";
    if (!verify) return "";
    try {
        if (sha256_of_file(path) == sha256) return "";
    } catch (const std::runtime_error &unreadable) {
        return name + " " + unreadable.what();
    }
    return name + " is not the file that was exported (sha256 differs)";
}

// Notes each data file that a graph would open and the manifest has no hash of.
void find_unhashed_data(const Bundle &bundle, const Stage &stage,
                        std::vector<std::string> &problems) {
    const std::string path = bundle.file(stage.file);
    const fs::path folder = fs::path(stage.file).parent_path();
    for (const std::string &name : data_files(read_file(path, "graph", kLargestGraph), path)) {
        if (stage.sha256.count((folder / name).string()) != 0) continue;
        problems.push_back(stage.file + " keeps weights in " + in_quotes(name) +
                           ", which has no sha256 in the manifest");
    }
}

std::vector<std::string> all_damage(const Bundle &bundle, bool verify) {
    const Manifest &manifest = bundle.manifest;
    std::map<std::string, std::string> expected = manifest.files;
    for (const Stage &stage : manifest.stages) {
        expected.insert(stage.sha256.begin(), stage.sha256.end());
    }

    const std::vector<std::pair<std::string, std::string>> items(expected.begin(), expected.end());
    std::vector<std::string> found(items.size());
    std::atomic<size_t> next{0};
    const auto work = [&] {
        for (size_t i = next++; i < items.size(); i = next++) {
            found[i] = damage(bundle, items[i].first, items[i].second, verify);
        }
    };
    // their destructors wait for the threads, whatever is thrown here
    std::vector<std::future<void>> others;
    try {
        const unsigned count = std::clamp(std::thread::hardware_concurrency(), 1u, kHashThreads);
        for (unsigned i = 1; verify && i < count; ++i) {
            others.push_back(std::async(std::launch::async, work));
        }
    } catch (const std::system_error &) {
        // no more threads to be had: this one does the rest
    }
    work();

    for (std::future<void> &other : others) other.get();
    std::vector<std::string> problems;
    for (std::string &problem : found) {
        if (!problem.empty()) problems.push_back(std::move(problem));
    }
    if (!problems.empty()) return problems;
    for (const Stage &stage : manifest.stages) find_unhashed_data(bundle, stage, problems);
    return problems;
}

}  // namespace

const Form *Text::form_named(const std::string &name) const {
    const std::string &wanted = name.empty() ? form : name;
    if (wanted.empty()) return nullptr;
    const auto found = forms.find(wanted);
    if (found != forms.end()) return &found->second;
    if (forms.empty()) {
        throw Error(RIS_ERROR_EXPRESSION,
                    "the model asks every expression as it is; leave the form " + in_quotes(name) +
                        " out");
    }
    std::string names;
    for (const auto &[known, about] : forms) names += (names.empty() ? "" : " and ") + known;
    throw Error(RIS_ERROR_EXPRESSION,
                "there is no form " + in_quotes(name) + "; the model has " + names);
}

int Text::row_length(size_t tokens) const {
    const auto holds = [&](int length) { return static_cast<size_t>(length) >= tokens; };
    const auto found = std::find_if(lengths.begin(), lengths.end(), holds);
    return found == lengths.end() ? max_tokens : *found;
}

bool Stage::is_of_questions() const {
    return std::any_of(inputs.begin(), inputs.end(), [](const TensorSpec &spec) {
        return std::count(spec.shape.begin(), spec.shape.end(), TensorSpec::expressions) > 0;
    });
}

int Manifest::expressions_at_once() const {
    constexpr double very_large = 1e12;
    double needed = 0;
    for (const Stage &stage : stages) {
        if (stage.is_of_questions()) needed += stage.operations;
    }
    return needed >= very_large ? 1 : 8;
}

Bundle read_bundle(const std::string &path) {
    std::error_code error;
    if (!fs::exists(path, error)) {
        throw Error(RIS_ERROR_BUNDLE, path + ": no such bundle; make one with ris-export");
    }
    if (!fs::is_directory(path, error)) {
        throw Error(RIS_ERROR_BUNDLE,
                    path + " is a file; a bundle is the folder that ris-export writes");
    }
    const std::string manifest = path + "/manifest.json";
    if (!fs::is_regular_file(manifest, error)) {
        throw Error(RIS_ERROR_BUNDLE, path + " has no manifest.json, so it is not a bundle; "
                                             "make one with ris-export");
    }

    return {fs::absolute(path).string(), parse_manifest(read_file(manifest, "manifest"), manifest)};
}

void check_files(const Bundle &bundle, bool verify) {
    const std::vector<std::string> problems = all_damage(bundle, verify);
    if (problems.empty()) return;
    throw Error(RIS_ERROR_BUNDLE,
                bundle.path + " is damaged: " + joined(problems) + ". Export the bundle again");
}

std::string read_file(const std::string &path, const char *what, uintmax_t largest) {
    std::error_code error;
    const uintmax_t size = fs::file_size(path, error);
    std::ifstream file(path, std::ios::binary);
    if (error || !file || size > largest) {
        throw Error(RIS_ERROR_BUNDLE,
                    path + " is no " + what + " that can be read; export the bundle again");
    }
    std::string text(static_cast<size_t>(size), '\0');
    if (!file.read(text.data(), static_cast<std::streamsize>(size))) {
        throw Error(RIS_ERROR_BUNDLE, path + " cannot be read to its end; export the bundle again");
    }
    return text;
}

Features parse_features(const std::string &data, const std::string &path) {
    const Error damaged(RIS_ERROR_BUNDLE,
                        path + " is no float32 .npy table [rows, width]; export the bundle again");
    // magic, version, length of the header, and the header: a Python dictionary as text
    if (data.size() < 10 || data.compare(0, 6, "\x93NUMPY") != 0 || data[6] != 1) throw damaged;
    const size_t start = 10 + (static_cast<unsigned char>(data[8]) |
                               size_t{static_cast<unsigned char>(data[9])} << 8);
    if (start > data.size()) throw damaged;

    const std::string header = data.substr(10, start - 10);
    const size_t shape = header.find("'shape': (");
    unsigned long rows = 0, width = 0;
    if (header.find("'descr': '<f4'") == std::string::npos ||
        header.find("'fortran_order': False") == std::string::npos || shape == std::string::npos ||
        std::sscanf(header.c_str() + shape, "'shape': (%9lu, %9lu)", &rows, &width) != 2 ||
        rows == 0 || width == 0 ||
        (data.size() - start) / sizeof(float) != static_cast<size_t>(rows) * width) {
        throw damaged;
    }

    Features features{rows, width, std::vector<float>(static_cast<size_t>(rows) * width)};
    std::memcpy(features.values.data(), data.data() + start,
                features.values.size() * sizeof(float));
    return features;
}

}  // namespace libris
