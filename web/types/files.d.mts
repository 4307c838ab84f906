/** An absolute address; of a folder it ends in "/". */
export function address(place: any, folder?: boolean): string;
/** A folder's files. @param {string} base ends in "/" */
export class Files {
    constructor(base: any, { cache, progress }?: {
        cache?: boolean | undefined;
        progress?: ((_: Progress) => void) | undefined;
    });
    base: any;
    place: any;
    kept: Promise<Cache | undefined> | undefined;
    progress: (_: Progress) => void;
    /** @type {Set<string>} */
    expected: Set<string>;
    /** @type {Map<string, number>} */
    loaded: Map<string, number>;
    /** @type {import('./manifest.mjs').Manifest} */
    manifest: import("./manifest.mjs").Manifest;
    /** Reads the manifest, without a network the kept one, and drops what is kept of its files' earlier contents. */
    open(): Promise<import("./manifest.mjs").Manifest>;
    /** What a file lies in, which is mostly one piece: the file itself. @returns {Piece[]} */
    pieces(name: any): Piece[];
    /** @param {string} what is not as it was @returns {never} */
    differs(what: string): never;
    /** Adds files to those that progress counts. @param {string[]} names */
    expect(names: string[]): void;
    /** Into one array from the start, for weights are most of the memory. @param {string} name */
    bytes(name: string): Promise<Uint8Array<any>>;
    json(name: any): Promise<any>;
    /** A piece into its place. @param {Piece} piece  @param {Uint8Array<ArrayBuffer>} place */
    read({ file, sha256 }: Piece, place: Uint8Array<ArrayBuffer>): Promise<void>;
    /** How much of a piece is there. */
    tell(file: any, count: any): void;
}
export function hex(bytes: any): string;
/**
 * A bundle's folder behind an address: each file checked against the manifest's hash, and kept between visits by that
 * hash.
 *
 * The hash is in the address that is fetched and in the key that it is kept by, so a bundle that is published again at
 * the same place meets no file of the one before. A file that a page has in pieces (`pieces` in its manifest) is put
 * together here.
 */
export type Piece = {
    file: string;
    sha256: string;
    bytes: number;
};
/**
 * in bytes, of all files that are needed
 */
export type Progress = {
    loaded: number;
    total: number;
    file: string;
};
