// Greedy tokens of a bundle on onnxruntime-web's WebAssembly, one thread: `node onnxruntime_web.mjs PACKAGES BUNDLE NEW ID...`
//
// What a browser does where it has no WebGPU, in Node: graph and weights are fetched as bytes, the weights under the name that the graph gives
// them. PACKAGES is a folder whose node_modules has onnxruntime-web. Prints {"new": [ids], "cpu_seconds": of all steps after the prompt}: CPU time,
// because other work on the machine changes it little.

import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const [packages, bundle, count, ...prompt] = process.argv.slice(2);
const ort = await import(pathToFileURL(createRequire(path.join(packages, 'x.js')).resolve('onnxruntime-web')));
const { env, InferenceSession, Tensor } = ort.InferenceSession ? ort : ort.default;
env.wasm.numThreads = 1;

const { file, data } = JSON.parse(fs.readFileSync(path.join(bundle, 'manifest.json'))).graphs.decoder;
const bytes = (name) => new Uint8Array(fs.readFileSync(path.join(bundle, name)));
const session = await InferenceSession.create(bytes(file), {
    executionProviders: ['wasm'],
    logSeverityLevel: 3, // otherwise one warning for each vector with a default
    externalData: [{ path: path.basename(data), data: bytes(data) }],
});

const int64 = (values) => new Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]);
const ones = {}; // the base, where vectors have to be fed
let feeds = {};
for (const { name, shape } of session.inputMetadata) {
    if (name.endsWith('.ia3_l')) ones[name] = new Tensor('float32', new Float32Array(shape[2]).fill(1), [1, 1, shape[2]]);
    if (name.startsWith('past_key_values.')) feeds[name] = new Tensor('float32', [], [1, shape[1], 0, shape[3]]);
}
let tokens = prompt.map(Number);
let seen = 0;
let start;
const found = [];
while (found.length < Number(count)) {
    seen += tokens.length;
    const outputs = await session.run({ ...feeds, ...ones, input_ids: int64(tokens), attention_mask: int64(Array(seen).fill(1)) });
    start ??= process.cpuUsage();
    const logits = outputs.logits.data;
    tokens = [logits.indexOf(logits.reduce((a, b) => Math.max(a, b)))];
    found.push(tokens[0]);
    const present = Object.entries(outputs).filter(([name]) => name.startsWith('present.'));
    feeds = Object.fromEntries(present.map(([name, value]) => [name.replace('present', 'past_key_values'), value]));
}
const { user, system } = process.cpuUsage(start);
console.log(JSON.stringify({ new: found, cpu_seconds: (user + system) / 1e6 }));
