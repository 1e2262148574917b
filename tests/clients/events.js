// The events of one upload as a browser's own clients get them: EventSource, which has no
// headers, and WebSocket with the subprotocol. What comes goes to `told`.

const source = new EventSource(`http://${settings.host}/v1/events?ids=${settings.id}&token=${settings.token}`);
for (const kind of ["snapshot", "subscribed", "upload.completed", "job.completed"]) {
  source.addEventListener(kind, (event) => {
    told("stream", kind, event.lastEventId !== "", JSON.parse(event.data).upload_id ?? null);
  });
}
source.onerror = () => told("stream", "broken");

const ws = new WebSocket(`ws://${settings.host}/v1/events/ws`, ["events.v1.json", "bearer", settings.token]);
ws.onopen = () => {
  told("socket", "opened", ws.protocol);
  ws.send(JSON.stringify({ type: "subscribe", ids: [settings.id] }));
};
ws.onmessage = (event) => {
  const message = JSON.parse(event.data);
  if (!message.events) return told("socket", message.type);
  for (const one of message.events) told("socket", one.type, typeof one.id);
};
