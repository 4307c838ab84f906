// What transformers.js makes of an encoder's bundle, opened with no option but its file's: `node transformers_js_labels.mjs PACKAGES BUNDLE TEXT...`
//
// PACKAGES is a folder whose node_modules has @huggingface/transformers. The class is the one that config.json names. Prints
// {"class", "labels", "ids": [[ids], ...], "rows": [[numbers], ...], "dims"}: logits or states of each text, flat.

import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const [packages, bundle, ...texts] = process.argv.slice(2);
const found = createRequire(path.join(packages, 'x.js')).resolve('@huggingface/transformers');
const loaded = await import(pathToFileURL(found));
const library = loaded.AutoTokenizer ? loaded : loaded.default;
library.env.allowRemoteModels = false;
library.env.localModelPath = path.dirname(bundle);

const [named] = JSON.parse(fs.readFileSync(path.join(bundle, 'config.json'))).architectures;
const kind = ['SequenceClassification', 'TokenClassification'].find((k) => named.endsWith(k));
const made = kind ? library[`AutoModelFor${kind}`] : library.AutoModel;
const tokenizer = await library.AutoTokenizer.from_pretrained(path.basename(bundle));
const model = await made.from_pretrained(path.basename(bundle));

const rows = [];
for (const text of texts) {
    const inputs = await tokenizer(text);
    const out = await model(inputs);
    const tensor = kind ? out.logits : out.last_hidden_state;
    rows.push({ ids: Array.from(inputs.input_ids.data, Number), dims: tensor.dims, values: Array.from(tensor.data) });
}
console.log(JSON.stringify({ class: model.constructor.name, labels: model.config.id2label, rows }));
