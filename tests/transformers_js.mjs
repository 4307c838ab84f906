// Greedy tokens of a bundle in transformers.js, opened with no option at all: `node transformers_js.mjs PACKAGES BUNDLE ADAPTER NEW TEXT...`
//
// PACKAGES is a folder whose node_modules has @huggingface/transformers; ADAPTER a name, or "none". Prints {"inputs": [...], "rows": [{"prompt":
// [ids], "new": [ids]}, ...], "batch": [[ids], ...]}: the texts one by one, and in one batch padded on the right. Vectors go in only where the
// graph lists them as inputs (export target "browser"), ones where no adapter is named.

import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const [packages, bundle, adapter, count, ...texts] = process.argv.slice(2);
const found = createRequire(path.join(packages, 'x.js')).resolve('@huggingface/transformers');
const loaded = await import(pathToFileURL(found));
const { AutoModelForCausalLM, AutoTokenizer, Tensor, env } = loaded.AutoTokenizer ? loaded : loaded.default; // version 4 or 3
env.allowRemoteModels = false;
env.localModelPath = path.dirname(bundle);

/** A PEFT folder's tensors: 8 bytes of length, a JSON header of offsets, then float32. */
function safetensors(file) {
    const bytes = fs.readFileSync(file);
    const start = 8 + Number(bytes.readBigUInt64LE(0));
    const header = JSON.parse(bytes.subarray(8, start).toString());
    const at = ([from, to]) => new Float32Array(bytes.buffer.slice(bytes.byteOffset + start + from, bytes.byteOffset + start + to));
    return Object.fromEntries(Object.entries(header).filter(([name]) => name !== '__metadata__').map(([name, t]) => [name, at(t.data_offsets)]));
}

/** Each vector by input name, [1, 1, d]. */
function vectorsOf(session) {
    const held = adapter === 'none' ? {} : safetensors(path.join(bundle, 'adapters', adapter, 'adapter_model.safetensors'));
    const places = (session.inputMetadata ?? []).filter((input) => input.name.endsWith('.ia3_l')); // version 3 has none
    return Object.fromEntries(places.map(({ name, shape }) => {
        const values = held[`base_model.model.${name}`] ?? new Float32Array(shape[2]).fill(1);
        return [name, new Tensor('float32', values, [1, 1, shape[2]])];
    }));
}

const tokenizer = await AutoTokenizer.from_pretrained(path.basename(bundle));
const model = await AutoModelForCausalLM.from_pretrained(path.basename(bundle));
const session = model.sessions.model;
const vectors = vectorsOf(session);
model.forward_params.push(...Object.keys(vectors));

const rows = [];
for (const text of texts) {
    const inputs = tokenizer(text, { add_special_tokens: false });
    const tokens = await model.generate({ ...inputs, ...vectors, max_new_tokens: Number(count), do_sample: false });
    const ids = tokens.tolist()[0].map(Number);
    const length = inputs.input_ids.dims[1];
    rows.push({ prompt: ids.slice(0, length), new: ids.slice(length) });
}
tokenizer.padding_side = 'right';
const together = tokenizer(texts, { add_special_tokens: false, padding: true });
const padded = await model.generate({ ...together, ...vectors, max_new_tokens: Number(count), do_sample: false });
const batch = padded.tolist().map((ids) => ids.slice(together.input_ids.dims[1]).map(Number));
const chat = tokenizer.chat_template ? tokenizer.apply_chat_template([{ role: 'user', content: 'hi' }], { tokenize: false }) : null;
console.log(JSON.stringify({ inputs: session.inputNames, rows, batch, chat }));
