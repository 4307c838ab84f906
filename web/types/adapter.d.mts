/**
 * Reads the file, whatever it is for.
 *
 * @param {ArrayBuffer} buffer  @returns {{modelVersion: number, tensors: Tensors}}
 */
export function readAdapter(buffer: ArrayBuffer, where?: string): {
    modelVersion: number;
    tensors: Tensors;
};
/**
 * An adapter's tensors, where it is one of this bundle's base, with a vector for each place and nothing else.
 *
 * @param {import('./manifest.mjs').Manifest} manifest  @param {ArrayBuffer} buffer  @param {string} where  @returns
 * {Tensors}
 */
export function fitting(manifest: import("./manifest.mjs").Manifest, buffer: ArrayBuffer, where: string): Tensors;
export const HEAD: string[];
/**
 * by the name of a graph's input
 */
export type Tensors = Record<string, {
    dims: number[];
    data: Float32Array;
}>;
