// The reference tus server of the Node world with its file store, as its README starts it.
// It does not sync what it acknowledges.
// Usage: node tus_server.mjs PORT DIRECTORY
import { FileStore } from "@tus/file-store";
import { Server } from "@tus/server";

const [port, directory] = process.argv.slice(2);

new Server({ path: "/files", datastore: new FileStore({ directory }) }).listen({
  host: "127.0.0.1",
  port: Number(port),
});
