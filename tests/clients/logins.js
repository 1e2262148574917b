// How a page says who it is where a token must not stand in a URL, and what it sees of a
// refusal. What comes goes to `told`; `settings` has hosts and tokens.

const open = (name, host, protocols, first) => {
  const ws = new WebSocket(`ws://${host}/ws/processing/${settings.ownId}/`, protocols);
  ws.onopen = () => {
    told(name, "opened", ws.protocol);
    if (first) ws.send(JSON.stringify({ type: "authenticate", token: first }));
  };
  ws.onmessage = (event) => told(name, "message", JSON.parse(event.data).type);
  ws.onclose = ({ code }) => told(name, "closed", code);
};

open("subprotocol", settings.secured, ["bearer", settings.ownToken]);
open("message", settings.secured, [], settings.ownToken);
open("bad token", settings.secured, [], "bad");
open("another company", settings.secured, [], settings.foreignToken);
open("another origin", settings.elsewhere, [], settings.ownToken);
