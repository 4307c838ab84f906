// Greedy tokens of an encoder-decoder's bundle in transformers.js, opened with no option at all:
// `node transformers_js_pair.mjs PACKAGES BUNDLE NEW IDS...`, IDS a JSON list of token ids of one prompt; all are of one length.
//
// Prints {"inputs": {session: [names]}, "rows": [[ids], ...], "batch": [[ids], ...]}: the answers one by one, and in one batch.

import { createRequire } from 'node:module';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const [packages, bundle, count, ...texts] = process.argv.slice(2);
const loaded = await import(pathToFileURL(createRequire(path.join(packages, 'x.js')).resolve('@huggingface/transformers')));
const { AutoModelForSeq2SeqLM, Tensor, env } = loaded.AutoModelForSeq2SeqLM ? loaded : loaded.default;
env.allowRemoteModels = false;
env.localModelPath = path.dirname(bundle);

const tensor = (rows) => new Tensor('int64', BigInt64Array.from(rows.flat().map(BigInt)), [rows.length, rows[0].length]);
const model = await AutoModelForSeq2SeqLM.from_pretrained(path.basename(bundle));
const prompts = texts.map((text) => JSON.parse(text));

async function answers(rows) {
    const mask = tensor(rows.map((row) => row.map(() => 1)));
    const given = { input_ids: tensor(rows), attention_mask: mask, max_new_tokens: Number(count), do_sample: false };
    return (await model.generate(given)).tolist().map((ids) => ids.map(Number));
}

const rows = [];
for (const prompt of prompts) {
    rows.push((await answers([prompt]))[0]);
}
const inputs = Object.fromEntries(Object.entries(model.sessions).map(([name, session]) => [name, session.inputNames]));
console.log(JSON.stringify({ inputs, rows, batch: await answers(prompts) }));
