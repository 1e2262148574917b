// Uploads a file with Uppy's Tus plugin and tells on stdout, in JSON lines, how it goes.
//
//   node uppy.mjs ENDPOINT FILE [OPTIONS]
//
// OPTIONS is a JSON object of options for the plugin. Lines: at the end {"done": bytes, "url"}
// or {"failed": reason} with exit code 1.

import { readFileSync } from "node:fs";
import { basename } from "node:path";

// Uppy is made for pages: it asks the browser whether there is a network.
globalThis.window ??= globalThis;
globalThis.addEventListener ??= () => {};
globalThis.removeEventListener ??= () => {};
globalThis.navigator ??= { onLine: true, userAgent: "node" };
const { default: Uppy } = await import("@uppy/core");
const { default: Tus } = await import("@uppy/tus");

const [endpoint, path, options = "{}"] = process.argv.slice(2);
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

// Outside of browsers tus-js-client reads buffers, and Uppy wants to know their size.
const data = readFileSync(path);
data.size = data.length;

const uppy = new Uppy().use(Tus, {
  endpoint,
  retryDelays: [0, 100, 500, 1000],
  ...JSON.parse(options),
});
uppy.addFile({ name: basename(path), type: "application/octet-stream", data });
const { successful, failed } = await uppy.upload();
for (const file of successful) say({ done: file.progress.bytesUploaded, url: file.uploadURL });
for (const file of failed) {
  say({ failed: String(file.error).slice(0, 300) });
  process.exitCode = 1;
}
