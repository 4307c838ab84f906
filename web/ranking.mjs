/**
 * Answers ranked by the log-probability of each after the prompt, its end token included (qia3/runtime/score.py).
 *
 * Answers that begin alike share their steps: the prompt is run once, then one batched step a depth over the distinct
 * beginnings. A step of many rows costs WebAssembly little more than a step of one.
 */

const MAX_ROWS = 32; // of a step: a thousand answers must not mean a thousand copies of the prompt's cache

/**
 * Scores of answers, in nats.
 *
 * @param {import('./graph.mjs').Decoder} decoder  @param {number[][]} answers
 * @param {import('./graph.mjs').Step} start after the prompt  @param {import('./adapter.mjs').Tensors} vectors
 * @param {string | undefined} by "sum", or "mean" of an answer's tokens
 */
export async function ranked(decoder, answers, start, vectors, by) {
  const paths = [...new Map(answers.map((path) => [key(path), path])).values()].sort(byTokens);
  /** @type {Map<string, number>} */
  const total = new Map();
  for (let from = 0; from < paths.length; from += MAX_ROWS) {
    await walk(decoder, paths.slice(from, from + MAX_ROWS), start, vectors, total);
  }
  return answers.map((answer) => (total.get(key(answer)) ?? NaN) / (by === 'mean' ? answer.length : 1));
}

/** Adds the log-probability of each path of tokens to `total`. */
async function walk(decoder, paths, start, vectors, total) {
  let [{ logits, cache }, places] = [start, new Map([['', 0]])]; // places: the row of each beginning
  const longest = Math.max(...paths.map((path) => path.length));
  for (let depth = 0; depth < longest; depth++) {
    const longer = paths.filter((path) => path.length > depth);
    if (depth) {
      const nodes = [...new Map(longer.map((path) => [key(path, depth), path])).values()];
      const index = nodes.map((path) => places.get(key(path, depth - 1)));
      const newest = nodes.map((path) => [path[depth - 1]]);
      const next = await decoder.extend(newest, await decoder.expand(cache, index), vectors);
      if (cache !== start.cache) decoder.drop(cache);
      ({ logits, cache } = next);
      places = new Map(nodes.map((path, row) => [key(path, depth), row]));
    }
    const normalisers = logits.map(logSumExp);
    for (const path of longer) {
      const row = /** @type {number} */ (places.get(key(path, depth)));
      total.set(key(path), (total.get(key(path)) ?? 0) + logits[row][path[depth]] - normalisers[row]);
    }
  }
  if (cache !== start.cache) decoder.drop(cache);
}

/** A path's first tokens, as what a Map can look up. */
const key = (path, count = path.length) => path.slice(0, count).join();

/** Neighbours share beginnings, so that cutting the list costs few of them. */
function byTokens(a, b) {
  const apart = a.findIndex((token, i) => token !== b[i]);
  if (apart < 0) return a.length - b.length;
  return apart < b.length ? a[apart] - b[apart] : 1;
}

/** Where the largest is, the first of equal ones. @param {ArrayLike<number>} values */
export function argmax(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

/** @param {ArrayLike<number>} logits */
export function logSumExp(logits) {
  const peak = logits[argmax(logits)];
  let sum = 0;
  for (let i = 0; i < logits.length; i++) sum += Math.exp(logits[i] - peak);
  return Math.log(sum) + peak;
}

/** Each choice's probability, given that it is one of them, of log-probabilities or logits. */
export function shares(choices, scores) {
  const peak = scores[argmax(scores)];
  const raised = scores.map((score) => Math.exp(score - peak));
  const sum = raised.reduce((a, b) => a + b, 0);
  return Object.fromEntries(choices.map((choice, i) => [choice, Math.round((raised[i] / sum) * 1e6) / 1e6]));
}
