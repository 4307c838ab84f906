// Greedy tokens of one folder after another in transformers.js, opened with no option at all (tests/loaders.py):
// `node loader.mjs PACKAGES NEW`, a folder's path on each line. Its prompts.json has ids of one length; the answer is a line
// {"rows": [[ids], ...], "batch": [[ids], ...]}, of the new tokens, or {"error": "..."}. Where the folder has a vectors.json
// {name: [values]}, those are given to generate(), as a graph of the target "browser" wants them.

import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import readline from 'node:readline';
import { pathToFileURL } from 'node:url';

const [packages, count] = process.argv.slice(2);
const loaded = await import(pathToFileURL(createRequire(path.join(packages, 'x.js')).resolve('@huggingface/transformers')));
const { AutoModelForCausalLM, AutoModelForSeq2SeqLM, Tensor, env } = loaded.AutoModelForCausalLM ? loaded : loaded.default;
env.allowRemoteModels = false;
env.useFSCache = false;

const tensor = (rows) => new Tensor('int64', BigInt64Array.from(rows.flat().map(BigInt)), [rows.length, rows[0].length]);

async function answers(model, rows, skip, vectors) {
    const given = { input_ids: tensor(rows), attention_mask: tensor(rows.map((row) => row.map(() => 1))), ...vectors };
    const found = await model.generate({ ...given, max_new_tokens: Number(count), do_sample: false });
    return found.tolist().map((ids) => ids.slice(skip).map(Number));
}

async function told(folder) {
    env.localModelPath = path.dirname(folder);
    const pair = JSON.parse(fs.readFileSync(path.join(folder, 'config.json'))).is_encoder_decoder;
    const model = await (pair ? AutoModelForSeq2SeqLM : AutoModelForCausalLM).from_pretrained(path.basename(folder));
    const prompts = JSON.parse(fs.readFileSync(path.join(folder, 'prompts.json')));
    const skip = pair ? 1 : prompts[0].length;
    const file = path.join(folder, 'vectors.json');
    const held = Object.entries(fs.existsSync(file) ? JSON.parse(fs.readFileSync(file)) : {});
    const vectors = Object.fromEntries(held.map(([name, v]) => [name, new Tensor('float32', Float32Array.from(v), [1, 1, v.length])]));
    model.forward_params.push(...Object.keys(vectors));
    const rows = [];
    for (const prompt of prompts) {
        rows.push((await answers(model, [prompt], skip, vectors))[0]);
    }
    const batch = await answers(model, prompts, skip, vectors);
    await model.dispose();
    return { rows, batch };
}

for await (const folder of readline.createInterface({ input: process.stdin })) {
    console.log(JSON.stringify(await told(folder).catch((error) => ({ error: error.message }))));
}
