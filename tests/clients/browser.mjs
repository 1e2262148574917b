// Opens a page of a local server in Chromium, and tells on stdout, in JSON lines, what its
// scripts call `told(...)` with.
//
//   node browser.mjs CHROMIUM PORT SETTINGS SCRIPT...
//
// The page's origin is http://127.0.0.1:PORT. In the scripts, which are files, `settings` is the
// JSON object SETTINGS. It ends when stdin does; an exception in the page ends it with code 1.

import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { chromium } from "playwright-core";

const [executablePath, port, settings, ...scripts] = process.argv.slice(2);
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

const server = createServer((request, response) => {
  response.setHeader("Content-Type", "text/html");
  response.end("<!doctype html><title>client</title>");
}).listen(Number(port), "127.0.0.1");

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const page = await browser.newPage();
page.on("pageerror", (error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
await page.exposeFunction("told", (...args) => say(args));
await page.goto(`http://127.0.0.1:${port}/`);
await page.addScriptTag({ content: `const settings = ${settings};` });
for (const script of scripts) {
  await page.addScriptTag({ content: readFileSync(script, "utf8") });
}

process.stdin.resume();
process.stdin.on("end", async () => {
  await browser.close();
  server.close();
});
