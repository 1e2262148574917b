// Socket.IO with its Redis Streams adapter, as the adapter's README starts it. Every socket
// joins the room that events are written for.
// Usage: node socketio.mjs PORT REDIS_SOCKET
import { createAdapter } from "@socket.io/redis-streams-adapter";
import { createClient } from "redis";
import { Server } from "socket.io";

const [port, path] = process.argv.slice(2);
const redis = createClient({ socket: { path } });
await redis.connect();

const io = new Server({ adapter: createAdapter(redis), transports: ["websocket"] });
io.on("connection", (socket) => socket.join("bench"));
io.listen(Number(port));
