// Plays a sound in Chromium and seeks in it; tells on stdout, in one line of JSON, what came.
//
//   node seek.mjs CHROMIUM ORIGIN PATH SECONDS
//
// The line: {"at": seconds reached, "duration": seconds, "ranges": [Content-Range, …]}.

import { chromium } from "playwright-core";

const [executablePath, origin, path, seconds] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
try {
  const page = await browser.newPage();
  const ranges = [];
  page.on("response", (response) => {
    if (response.url().endsWith(path)) ranges.push(response.headers()["content-range"] ?? "");
  });
  // A page of the same origin as the file, since files are not lent to others.
  await page.route(`${origin}/player`, (route) =>
    route.fulfill({ contentType: "text/html", body: "<!doctype html><video></video>" }),
  );
  await page.goto(`${origin}/player`);
  const seen = await page.evaluate(
    ([source, to]) =>
      new Promise((resolve, reject) => {
        const video = document.querySelector("video");
        video.onerror = () => reject(new Error(video.error.message));
        video.onloadedmetadata = () => (video.currentTime = to);
        video.onseeked = () => resolve({ at: video.currentTime, duration: video.duration });
        video.src = source;
      }),
    [path, Number(seconds)],
  );
  process.stdout.write(`${JSON.stringify({ ...seen, ranges })}\n`);
} finally {
  await browser.close();
}
