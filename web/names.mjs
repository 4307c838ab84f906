/** Names in messages, worded as the Python runtime words them (AdapterBank, repr and difflib there). */

const UNSEEN = /[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/u;

/** In quotes, fit for one line. @param {string} text */
export function quoted(text) {
  const mark = text.includes("'") && !text.includes('"') ? '"' : "'";
  const escapes = { '\n': '\\n', '\r': '\\r', '\t': '\\t', '\\': '\\\\', [mark]: `\\${mark}` };
  const fit = (character) => escapes[character] ?? (UNSEEN.test(character) ? escaped(character) : character);
  return mark + [...text].map(fit).join('') + mark;
}

/** A character's number, as Python writes it. */
function escaped(character) {
  const code = /** @type {number} */ (character.codePointAt(0));
  const [letter, digits] = code < 0x100 ? ['x', 2] : code < 0x10000 ? ['u', 4] : ['U', 8];
  return `\\${letter}${code.toString(16).padStart(digits, '0')}`;
}

/** Names, the nearest first. @param {string} name  @param {string[]} known */
export function nearest(name, known) {
  const near = new Map(known.map((other) => [other, likeness(name, other)]));
  return [...known].sort((a, b) => /** @type {number} */ (near.get(b)) - /** @type {number} */ (near.get(a)));
}

/** The same in a message, where the first one is near enough to be what was meant: difflib's close matches. */
export function instead(name, known) {
  const near = nearest(name, known);
  const hint = known.some((other) => likeness(other, name) >= 0.6) ? `did you mean ${quoted(near[0])}? ` : '';
  return `${hint}it has: ${near.join(', ') || 'none'}`;
}

/** Twice the letters in common by those of both (Ratcliff and Obershelp, 1988). */
function likeness(left, right) {
  const [a, b] = [[...left], [...right]];
  return a.length + b.length ? (2 * common(a, b)) / (a.length + b.length) : 1;
}

/** Letters of the longest run in common, and of the longest ones before and behind it. */
function common(a, b) {
  let [size, i, j] = [0, 0, 0];
  for (let from = 0; from < a.length; from++) {
    for (let at = 0; at < b.length; at++) {
      let run = 0;
      while (from + run < a.length && at + run < b.length && a[from + run] === b[at + run]) run++;
      if (run > size) [size, i, j] = [run, from, at];
    }
  }
  if (!size) return 0;
  return size + common(a.slice(0, i), b.slice(0, j)) + common(a.slice(i + size), b.slice(j + size));
}
