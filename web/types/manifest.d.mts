/** @param {string} line @returns {never} */
export function refuse(line: string): never;
/** Names of what keeps JSON from being a task. @returns {string[]} */
export function wrongInTask(task: any): string[];
/**
 * The manifest itself, where this version understands what it says.
 *
 * @param {any} value  @param {string} where  @returns {Manifest}
 */
export function checked(value: any, where: string): Manifest;
/** The places for vectors of all graphs, which are what an adapter has vectors for. @returns {Vector[]} */
export function vectorsOf(manifest: any): Vector[];
export const AGAIN: "copy the bundle again or build it again";
export const VECTOR: ".ia3_l";
/** What a user can mend: one line with the problem, the place and the way out. */
export class QIA3Error extends Error {
}
export function wellFormed(text: any): boolean;
export function isSize(value: any): boolean;
/**
 * after `checked`
 */
export type Manifest = Record<string, any>;
/**
 * a graph's input
 */
export type Vector = {
    name: string;
    size: number;
};
/**
 * manifest.json, as far as a page needs it: understood, or refused in one line. qia3/bundle/manifest.py has all of it.
 */
export type Graph = {
    file: string;
    data: string;
    target: string;
    logits: string;
    vectors: Vector[];
};
/**
 * manifest.json, as far as a page needs it: understood, or refused in one line. qia3/bundle/manifest.py has all of it.
 */
export type Task = {
    kind: "classify" | "generate" | "embed" | "token-classification";
    /**
     * holds {text} once
     */
    prompt: string;
    choices: string[] | null;
    ranking?: "sum" | "mean" | undefined;
    max_new_tokens: number;
    /**
     * the text of the token that ends an answer
     */
    end: string;
};
