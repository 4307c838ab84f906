// A bundle's greedy tokens in headless Chromium, by transformers.js as it is.
//
//   node answer.mjs CHROMIUM NODE_MODULES BUNDLE DEVICE ADAPTER COUNT PROMPTS
//
// DEVICE is wasm or webgpu (SwiftShader, in software: numbers count, time does not); PROMPTS is JSON, a list of lists of
// token numbers. Prints {"new": [[...]], "console": [errors]}.

import fs from "node:fs";
import http from "node:http";
import { createRequire } from "node:module";
import path from "node:path";

const [chromium, modules, bundle, device, adapter, count, prompts] = process.argv.slice(2);
const playwright = createRequire(path.join(modules, "x.js"))("playwright-core");
const TYPES = { html: "text/html", js: "text/javascript", mjs: "text/javascript", wasm: "application/wasm", json: "application/json" };
const GPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan", "--ignore-gpu-blocklist"];

/** A page's files, the packages and the bundle, under the headers that WebAssembly's threads ask for. */
function serve() {
  const places = { modules, bundle, "": import.meta.dirname };
  const server = http.createServer((request, response) => {
    const [, first, ...rest] = decodeURIComponent(new URL(request.url, "http://x").pathname).split("/");
    const file = first in places && rest.length ? path.join(places[first], ...rest) : path.join(places[""], first);
    const headers = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };
    if (!fs.existsSync(file)) return response.writeHead(404, headers).end();
    response.writeHead(200, { ...headers, "Content-Type": TYPES[file.split(".").pop()] ?? "application/octet-stream" });
    fs.createReadStream(file).pipe(response);
  });
  return new Promise((ready) => server.listen(0, "127.0.0.1", () => ready(server)));
}

const server = await serve();
const browser = await playwright.chromium.launch({ executablePath: chromium, args: ["--no-sandbox", ...(device === "webgpu" ? GPU : [])] });
const page = await browser.newPage();
const complaints = [];
page.on("pageerror", (error) => complaints.push(String(error)));
page.on("console", (message) => message.type() === "error" && !/favicon|404/.test(message.text()) && complaints.push(message.text()));
try {
  await page.goto(`http://127.0.0.1:${server.address().port}/answer.html`);
  await page.waitForFunction("window.answer !== undefined", null, { timeout: 60000 });
  const asked = ["bundle", device, adapter, JSON.parse(prompts), Number(count)];
  const found = await page.evaluate((asked) => window.answer(...asked), asked);
  console.log(JSON.stringify({ new: found, console: complaints }));
} finally {
  await browser.close();
  server.close();
}
