// Opens sockets with the package ws, and tells on stdout, in JSON lines, what comes.
//
//   node sockets.mjs SOCKETS
//
// SOCKETS is a JSON list of {"name", "url", "say"?}; `say` is a list of messages to send first.
// Lines: {"name", "message"} and {"name", "closed": code}. It ends when stdin does.

import WebSocket from "ws";

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const sockets = JSON.parse(process.argv[2]).map(({ name, url, say: first = [] }) => {
  const ws = new WebSocket(url);
  ws.on("open", () => first.forEach((message) => ws.send(JSON.stringify(message))));
  ws.on("message", (data) => say({ name, message: JSON.parse(data) }));
  ws.on("close", (code) => say({ name, closed: code }));
  ws.on("error", (error) => say({ name, failed: error.message }));
  return ws;
});

process.stdin.resume();
process.stdin.on("end", () => sockets.forEach((ws) => ws.terminate()));
