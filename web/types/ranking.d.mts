/**
 * Scores of answers, in nats.
 *
 * @param {import('./graph.mjs').Decoder} decoder  @param {number[][]} answers
 * @param {import('./graph.mjs').Step} start after the prompt  @param {import('./adapter.mjs').Tensors} vectors
 * @param {string | undefined} by "sum", or "mean" of an answer's tokens
 */
export function ranked(decoder: import("./graph.mjs").Decoder, answers: number[][], start: import("./graph.mjs").Step, vectors: import("./adapter.mjs").Tensors, by: string | undefined): Promise<number[]>;
/** Where the largest is, the first of equal ones. @param {ArrayLike<number>} values */
export function argmax(values: ArrayLike<number>): number;
/** @param {ArrayLike<number>} logits */
export function logSumExp(logits: ArrayLike<number>): number;
/** Each choice's probability, given that it is one of them, of log-probabilities or logits. */
export function shares(choices: any, scores: any): {
    [k: string]: any;
};
