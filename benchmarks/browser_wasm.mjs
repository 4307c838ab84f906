// A bundle on WebAssembly in Node, one thread: node browser_wasm.mjs WEB PACKAGES BUNDLE ADAPTER TOKENS
//
// Prints {"load_s", "prompt_ms", "token_ms", "token_cpu_ms", "peak_mib"}; a token's time is the middle one of those after the prompt.

import path from "node:path";
import { pathToFileURL } from "node:url";

const [web, packages, bundle, adapter, count] = process.argv.slice(2);
const { open } = await import(pathToFileURL(path.join(web, "qia3.mjs")));
const at = (file) => pathToFileURL(path.join(packages, "node_modules", file)).href;
const runtime = { wasm: at("onnxruntime-web/dist/ort.wasm.min.mjs"), tokenizers: at("@huggingface/tokenizers/dist/tokenizers.min.mjs") };
let start = performance.now();
const lap = () => { const past = performance.now() - start; start = performance.now(); return past; };
const model = await open(bundle, { runtime, threads: 1 });
model.manifest.stop_tokens.length = 0; // as many tokens as are asked for
const load = lap();
const times = [];
let cpu;
for await (const _ of model.generateTokens("could you dim the hall a bit", adapter, { maxNewTokens: Number(count) })) {
  times.push(lap());
  cpu ??= process.cpuUsage();
}
const { user, system } = process.cpuUsage(cpu);
const [prompt, ...tokens] = times;
tokens.sort((a, b) => a - b);
console.log(JSON.stringify({
  load_s: load / 1000, prompt_ms: prompt, token_ms: tokens[tokens.length >> 1], token_cpu_ms: (user + system) / 1000 / tokens.length,
  peak_mib: process.resourceUsage().maxRSS / 1024,
}));
