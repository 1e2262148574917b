// Uploads a file with tus-js-client and tells on stdout, in JSON lines, how it goes.
//
//   node tus_js.mjs ENDPOINT FILE [OPTIONS [memory]]
//
// OPTIONS is a JSON object of options for tus-js-client. With `memory` the file is read before
// it is sent: of a file on disk, version 4.3.1 never says that a request is the last one, unless
// it sends all in one, so that no upload that was resumed would be complete for the IETF. Lines: {"url"}, {"retry", "reason"},
// and at the end {"done": bytes} or {"failed": reason} with exit code 1.

import { createReadStream, readFileSync } from "node:fs";
import { basename } from "node:path";
import { Upload } from "tus-js-client";

const [endpoint, path, options = "{}", where = "disk"] = process.argv.slice(2);
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const brief = (error) => error.message.slice(0, 300);

const input = where === "memory" ? readFileSync(path) : createReadStream(path);
const upload = new Upload(input, {
  endpoint,
  metadata: { filename: basename(path), filetype: "application/octet-stream" },
  retryDelays: [0, 50, 100, 200, 500, 1000, 1000, 1000, 1000, 1000],
  onUploadUrlAvailable: () => say({ url: upload.url }),
  onShouldRetry: (error, attempt) => {
    say({ retry: attempt, reason: brief(error) });
    return true;
  },
  onSuccess: () => say({ done: upload.options.uploadSize ?? upload._size }),
  onError: (error) => {
    say({ failed: brief(error) });
    process.exitCode = 1;
  },
  ...JSON.parse(options),
});
upload.start();
