// The same questions in Node, on WebAssembly: node ask_node.mjs WEB MODULES < JOBS
//
// JOBS is JSON, a list of ["ask", folder, options, questions] and ["tokens", tokenizer.json, rows, [[template, text], ...]],
// and "words" in the place of "tokens" with lists of words. Prints the list of results; tokens are [[ids, what they decode to],
// ...], words [[ids, places of the words], ...], and {error} where a text is refused; of ["drawn", logits, decodings, count],
// each decoding's probabilities of tokens, and so many tokens drawn.

import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { answers } from "./answers.mjs";

const [web, modules] = process.argv.slice(2);
const decoding = await import(pathToFileURL(path.join(web, "decoding.mjs")));
const qia3 = await import(pathToFileURL(path.join(web, "qia3.mjs")));
const at = (file) => pathToFileURL(path.join(modules, file)).href;
const runtime = {
  wasm: at("onnxruntime-web/dist/ort.wasm.min.mjs"),
  tokenizers: at("@huggingface/tokenizers/dist/tokenizers.min.mjs"),
};
const library = await import(runtime.tokenizers);

const kinds = {
  drawn: (logits, decodings, count) =>
    decodings.map((given) => {
      const checked = decoding.checkedDecoding(given);
      const [values, choose] = [Float32Array.from(logits), decoding.chooser(checked)];
      return [Array.from(decoding.probabilities(values, checked)), Array.from({ length: count }, () => choose(values))];
    }),
  ask: (folder, options, questions) => answers((more) => qia3.open(folder, { runtime, ...options, ...more }), questions),
  words: (file, rows, texts) => {
    const tokens = new qia3.Tokens(library, JSON.parse(fs.readFileSync(file, "utf8")), {}, rows);
    return texts.map(([template, words]) => {
      try {
        const { ids, places } = tokens.words(template, words);
        return [ids, places];
      } catch (error) {
        return { error: `${error.name}: ${error.message}` };
      }
    });
  },
  tokens: (file, rows, texts) => {
    const tokens = new qia3.Tokens(library, JSON.parse(fs.readFileSync(file, "utf8")), {}, rows);
    return texts.map(([template, text]) => {
      try {
        const ids = tokens.prompt(template, text);
        return [ids, tokens.decode(ids)];
      } catch (error) {
        return { error: `${error.name}: ${error.message}` };
      }
    });
  },
};

const results = [];
for (const [kind, ...given] of JSON.parse(fs.readFileSync(0, "utf8"))) results.push(await kinds[kind](...given));
console.log(JSON.stringify(results));
