/**
 * manifest.json, as far as a page needs it: understood, or refused in one line. qia3/bundle/manifest.py has all of it.
 *
 * @typedef {Record<string, any>} Manifest  after `checked`
 * @typedef {{name: string, size: number}} Vector  a graph's input
 * @typedef {{file: string, data: string, target: string, logits: string, vectors: Vector[]}} Graph
 * @typedef {object} Task
 * @property {'classify' | 'generate' | 'embed' | 'token-classification'} kind
 * @property {string} prompt  holds {text} once
 * @property {string[] | null} choices
 * @property {'sum' | 'mean'} [ranking]
 * @property {number} max_new_tokens
 * @property {string} end  the text of the token that ends an answer
 */

const FORMAT = 3;
const KINDS = ['classify', 'generate', 'embed', 'token-classification'];
export const AGAIN = 'copy the bundle again or build it again';
export const VECTOR = '.ia3_l';

/** What a user can mend: one line with the problem, the place and the way out. */
export class QIA3Error extends Error {
  name = 'QIA3Error';
}

/** @param {string} line @returns {never} */
export function refuse(line) {
  throw new QIA3Error(line);
}

export const wellFormed = (text) => !/\p{Surrogate}/u.test(text);
const isText = (value) => typeof value === 'string' && wellFormed(value);
const isCount = (value) => Number.isSafeInteger(value) && value >= 0;
export const isSize = (value) => Number.isSafeInteger(value) && value >= 1;
const isHash = (value) => /^[0-9a-f]{64}$/.test(value);
const isTable = (value) => value !== null && typeof value === 'object' && !Array.isArray(value);
const isPiece = (value) => isHash(value?.sha256) && isCount(value?.bytes);
const leaves = (part, i) => ['', '.', '..'].includes(part) || (i === 0 && part.includes(':'));
const isInside = (value) => isText(value) && !value.includes('\\') && !value.split('/').some(leaves);
const areChoices = (value) =>
  Array.isArray(value) &&
  value.length > 0 &&
  value.every((one) => isText(one) && one) &&
  new Set(value).size === value.length;

/** Names of what keeps JSON from being a task. @returns {string[]} */
export function wrongInTask(task) {
  if (!isTable(task)) return ['all of it'];
  const rules = {
    kind: KINDS.includes(task.kind),
    prompt: isText(task.prompt) && task.prompt.split('{text}').length === 2,
    choices: task.choices === null || areChoices(task.choices),
    ranking: ['sum', 'mean', undefined].includes(task.ranking),
    max_new_tokens: isSize(task.max_new_tokens),
    end: isText(task.end),
  };
  return Object.keys(rules).filter((key) => !rules[key]);
}

function wrongInGraph(graph) {
  if (!isTable(graph)) return ['all of it'];
  const folder = (file) => String(file).replace(/[^/]*$/, '');
  const isVector = (value) => isText(value?.name) && value.name.endsWith(VECTOR) && isSize(value.size);
  const rules = {
    file: isInside(graph.file),
    data: isInside(graph.data) && folder(graph.data) === folder(graph.file),
    logits: ['last', 'all'].includes(graph.logits),
    vectors: Array.isArray(graph.vectors) && graph.vectors.every(isVector),
  };
  return Object.keys(rules).filter((key) => !rules[key]);
}

/** What is wrong in the parts that are one of a kind. */
function wrongInWhole(value) {
  const shape = value.architecture ?? {};
  const merged = value.mode === 'merged';
  const counts = ['kv_heads', 'head_size', 'hidden_size', 'vocab_size', 'context_length'];
  const files = isTable(value.files) ? Object.entries(value.files) : [['', null]];
  const main = isTable(shape.pooling) ? 'encoder' : 'decoder';
  const rules = {
    name: isText(value.name),
    mode: merged || value.mode === 'side',
    merged_task: merged ? isTable(value.tasks) && value.merged_task in value.tasks : value.merged_task === null,
    'base.fingerprint': isHash(value.base?.fingerprint),
    architecture: counts.every((key) => isSize(shape[key])),
    'architecture.cache': ['float32', undefined].includes(shape.cache),
    prompt: isText(value.prompt?.prefix) && isText(value.prompt?.suffix),
    stop_tokens: Array.isArray(value.stop_tokens) && value.stop_tokens.every(isCount),
    tasks: isTable(value.tasks),
    graphs: isTable(value.graphs) && main in value.graphs,
    files: files.every(([name, file]) => isInside(name) && isPiece(file)),
  };
  return Object.keys(rules).filter((key) => !rules[key]);
}

/** Pieces that are not those of their file. */
function wrongInPieces(pieces, file) {
  const fits = Array.isArray(pieces) && pieces.every((piece) => isInside(piece?.file) && isPiece(piece));
  return fits && pieces.reduce((sum, piece) => sum + piece.bytes, 0) === file?.bytes ? [] : ['bytes'];
}

/**
 * The manifest itself, where this version understands what it says.
 *
 * @param {any} value  @param {string} where  @returns {Manifest}
 */
export function checked(value, where) {
  if (!isTable(value) || !('format' in value))
    refuse(`${where}/manifest.json is not a bundle's manifest: it has no 'format'; make one with \`qia3 build\``);
  if (value.format !== FORMAT) {
    const [reach, way] = value.format > FORMAT ? ['up to', 'upgrade qia3.mjs'] : ['only', 'build the bundle again'];
    refuse(`${where} has bundle format ${value.format}, but this version reads ${reach} ${FORMAT}; ${way}`);
  }
  if (value.architecture?.cache === 'int8') {
    refuse(`${where} keeps an int8 cache, which a browser has no kernel for; export it with --target browser`);
  }
  const each = (table, key, wrong) =>
    Object.entries(isTable(table) ? table : {}).flatMap(([name, one]) =>
      wrong(one, name).map((what) => `${key}.${name}.${what}`),
    );
  const bad = [
    ...wrongInWhole(value),
    ...each(value.tasks, 'tasks', wrongInTask),
    ...each(value.graphs, 'graphs', wrongInGraph),
    ...each(value.pieces, 'pieces', (pieces, name) => wrongInPieces(pieces, value.files?.[name])),
  ];
  if (bad.length) refuse(`${where}/manifest.json is damaged: ${bad.slice(0, 5).map(invalid).join('; ')}; ${AGAIN}`);
  return value;
}

const invalid = (what) => `${what} is missing or not valid here`;

/** The places for vectors of all graphs, which are what an adapter has vectors for. @returns {Vector[]} */
export function vectorsOf(manifest) {
  const all = Object.values(manifest.graphs).flatMap((graph) => graph.vectors);
  return [...new Map(all.map((vector) => [vector.name, vector])).values()];
}
