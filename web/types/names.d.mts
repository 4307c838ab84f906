/** In quotes, fit for one line. @param {string} text */
export function quoted(text: string): string;
/** Names, the nearest first. @param {string} name  @param {string[]} known */
export function nearest(name: string, known: string[]): string[];
/** The same in a message, where the first one is near enough to be what was meant: difflib's close matches. */
export function instead(name: any, known: any): string;
