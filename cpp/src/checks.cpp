#include "checks.h"

#include "error.h"
#include "external.h"

#include <algorithm>
#include <filesystem>

namespace libris {
namespace {

using Names = std::vector<std::string>;

struct Signature {
    Names inputs, outputs;
};

// docs/reference/design.md, The five graphs
std::array<Signature, kStages> signatures(const Manifest &manifest) {
    Names question = {"clip_tokens", "text_features", "text_mask", "image_index"};
    Names prompts = {"dense_prompt", "sparse_prompt"};
    const Names decoded = {"image_embeddings", "dense_prompt", "sparse_prompt", "image_index"};
    if (manifest.no_target) {
        question.emplace_back("image_embeddings");
        prompts.emplace_back("no_target_logits");
    }
    if (manifest.categories) question.emplace_back("category_feature");
    return {Signature{{"image"}, {"image_embeddings"}}, Signature{{"image"}, {"clip_tokens"}},
            Signature{{"input_ids"}, {"text_features"}},
            Signature{std::move(question), std::move(prompts)},
            Signature{decoded, {"mask_logits"}}};
}

bool is_integer(const std::string &name) { return name == "input_ids" || name == "image_index"; }

// A sentence where the tensors are not those that libris gives or takes; else nothing.
void check_tensors(const std::string &field, const std::vector<TensorSpec> &specs,
                   const Names &wanted, std::vector<std::string> &problems) {
    const auto is_there = [&](const std::string &name) {
        return std::any_of(specs.begin(), specs.end(), [&](const TensorSpec &spec) {
            return spec.name == name && spec.is_int32 == is_integer(name);
        });
    };
    if (specs.size() == wanted.size() && std::all_of(wanted.begin(), wanted.end(), is_there)) {
        return;
    }
    std::string words;
    for (const std::string &name : wanted) {
        words += (words.empty() ? "" : ", ") + name;
        words += is_integer(name) ? " (int32)" : " (float32)";
    }
    problems.push_back(field + " should be " + words);
}

void check_hash(const std::string &field, const std::string &name,
                const std::map<std::string, std::string> &hashes,
                std::vector<std::string> &problems) {
    if (hashes.count(name) != 0) return;
    problems.push_back(field + " is " + quoted(name) + ", which has no sha256 in the manifest");
}

}  // namespace

std::vector<std::string> problems_of(const Manifest &manifest) {
    std::vector<std::string> problems;
    check_hash("text.tokenizer", manifest.tokenizer, manifest.files, problems);
    check_hash("golden", manifest.golden, manifest.files, problems);
    if (manifest.categories) {
        check_hash("categories.names", manifest.categories->first, manifest.files, problems);
        check_hash("categories.features", manifest.categories->second, manifest.files, problems);
    }
    const std::array<Signature, kStages> expected = signatures(manifest);
    for (size_t stage = 0; stage < kStages; ++stage) {
        const Graph &graph = manifest.graphs[stage];
        const std::string field = std::string("graphs.") + kStageNames[stage];
        check_hash(field + ".file", graph.file, graph.sha256, problems);
        check_tensors(field + ".inputs", graph.inputs, expected[stage].inputs, problems);
        check_tensors(field + ".outputs", graph.outputs, expected[stage].outputs, problems);
    }
    return problems;
}

std::vector<std::string> unhashed_data(const Bundle &bundle, const Graph &graph) {
    std::vector<std::string> problems;
    const std::string path = bundle.file(graph.file);
    const std::filesystem::path folder = std::filesystem::path(graph.file).parent_path();
    for (const std::string &name : data_files(read_file(path, "graph", kLargestGraph), path)) {
        if (graph.sha256.count((folder / name).string()) != 0) continue;
        problems.push_back(graph.file + " keeps weights in " + quoted(name) +
                           ", which has no sha256 in the manifest");
    }
    return problems;
}

}  // namespace libris
