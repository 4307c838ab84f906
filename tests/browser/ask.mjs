// Questions to bundles in headless Chromium, by qia3.mjs.
//
//   node ask.mjs CHROMIUM NODE_MODULES < JOBS
//
// JOBS is JSON: {"places": {name: folder}, "jobs": [[function, ...arguments], ...]}, functions being those of ask.html. WebGPU is
// played by the processor (SwiftShader): numbers count, time does not. Prints {"results": [...], "console": [errors],
// "asked": [paths]}; each job has a page of its own, and all of them one profile.

import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { serve } from "./serve.mjs";

const [chromium, modules] = process.argv.slice(2);
const { places, jobs } = JSON.parse(fs.readFileSync(0, "utf8"));
const playwright = createRequire(path.join(modules, "x.js"))("playwright-core");
const GPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan", "--ignore-gpu-blocklist"];

const found = { results: [], console: [], asked: [] };
const server = await serve(places, (url) => found.asked.push(url));
const browser = await playwright.chromium.launch({ executablePath: chromium, args: ["--no-sandbox", ...GPU] });
const context = await browser.newContext();
try {
  for (const job of jobs) {
    const page = await context.newPage();
    page.on("pageerror", (error) => found.console.push(String(error)));
    page.on("console", (message) => ["error", "warning"].includes(message.type()) && found.console.push(message.text()));
    await page.goto(`http://127.0.0.1:${server.address().port}/ask.html`);
    await page.waitForFunction("window.stopped !== undefined", null, { timeout: 60000 });
    found.results.push(await page.evaluate(([name, ...given]) => window[name](...given), job));
    await page.close();
  }
  console.log(JSON.stringify(found));
} finally {
  await browser.close();
  server.close();
}
