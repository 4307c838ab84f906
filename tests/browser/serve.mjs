// A server of folders for tests: {name: folder}, each at /name/, and the files of this folder at /. Pages are isolated from
// others, as WebAssembly's threads ask for. `seen` is told every path that is asked for.

import fs from "node:fs";
import http from "node:http";
import path from "node:path";

const TYPES = { html: "text/html", js: "text/javascript", mjs: "text/javascript", wasm: "application/wasm", json: "application/json" };
const HEADERS = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

export function serve(places, seen = () => {}) {
  const server = http.createServer((request, response) => {
    const [, first, ...rest] = decodeURIComponent(new URL(request.url, "http://x").pathname).split("/");
    seen(request.url);
    const file = rest.length && Object.hasOwn(places, first) ? path.join(places[first], ...rest) : path.join(import.meta.dirname, first);
    if (!fs.statSync(file, { throwIfNoEntry: false })?.isFile()) return response.writeHead(404, HEADERS).end();
    response.writeHead(200, { ...HEADERS, "Content-Type": TYPES[file.split(".").pop()] ?? "application/octet-stream" });
    fs.createReadStream(file).pipe(response);
  });
  return new Promise((ready) => server.listen(0, "127.0.0.1", () => ready(server)));
}
