// The browser clients of the five documents, as those write them; what they call, and the
// names that they take from around them, are `told` and `settings`.

const uploadId = settings.uploadId;
const jobId = settings.jobId;
const accessToken = settings.token;
const token = settings.token;

// The documents name a host and an upload of their own.
const Native = WebSocket;
WebSocket = class extends Native {
  constructor(url, ...more) {
    super(
      url
        .replace(/localhost:80[08]0/, settings.host)
        .replace("/ws/processing/123/", `/ws/processing/${settings.uploadId}/`),
      ...more,
    );
  }
};

const calls = (who, ...names) =>
  Object.fromEntries(names.map((name) => [name, (...args) => told(who, name, ...args)]));

// 001:147 to 154.
(({ updateProgressBar }) => {
const ws = new WebSocket(`ws://localhost:8080/api/v1/ws/${uploadId}`);

ws.onmessage = (event) => {
  const data = JSON.parse(event.data);
  if (data.type === "progress") {
    updateProgressBar(data.progress);
  }
};
ws.addEventListener("open", () => told("001", "open"));
})(calls("001", "updateProgressBar"));

// 002:381 to 398.
(({ updateProgressBar, displayResults, showDuplicateMessage }) => {
// Connect to WebSocket for real-time updates
const ws = new WebSocket('ws://localhost:8000/ws');

ws.onmessage = function(event) {
    const data = JSON.parse(event.data);
    
    switch(data.event_type) {
        case 'upload_progress':
            updateProgressBar(data.progress_percentage);
            break;
        case 'processing_completed':
            displayResults(data.result);
            break;
        case 'duplicate_detected':
            showDuplicateMessage(data.cached_result);
            break;
    }
};
ws.addEventListener("open", () => told("002", "open"));
})(calls("002", "updateProgressBar", "displayResults", "showDuplicateMessage"));

// 003:378 to 400.
(({ updateProgressBar, showSuccess, showError, console }) => {
// Frontend JavaScript
const ws = new WebSocket(`ws://localhost:8000/ws/processing/123/?token=${accessToken}`);

ws.onopen = () => {
  console.log('Connected to upload progress');
};

ws.onmessage = (event) => {
  const data = JSON.parse(event.data);
  console.log('Received:', data);

  if (data.type === 'progress') {
    updateProgressBar(data.percent);
  } else if (data.type === 'complete') {
    showSuccess(data.results);
  } else if (data.type === 'error') {
    showError(data.message);
  }
};

ws.onerror = (error) => {
  console.error('WebSocket error:', error);
};
})({
  ...calls("003", "updateProgressBar", "showSuccess", "showError"),
  console: {
    log: (_text, data) => (data ? told("003", "received", data.type) : told("003", "open")),
    error: () => told("003", "failed"),
  },
});

// 003:419 to 442, the effect of the React hook.
(({ setProgress, setStatus, setError, setResults }) => {
    const ws = new WebSocket(
      `ws://localhost:8000/ws/processing/${uploadId}/?token=${token}`
    );

    ws.onmessage = (event) => {
      const data = JSON.parse(event.data);

      switch (data.type) {
        case 'progress':
          setProgress(data.percent);
          break;
        case 'status':
          setStatus(data.status);
          break;
        case 'error':
          setError(data.message);
          break;
        case 'complete':
          setProgress(100);
          setStatus('completed');
          setResults(data.results);
          break;
      }
    };
    ws.addEventListener("open", () => told("hook", "open"));
})(calls("hook", "setProgress", "setStatus", "setError", "setResults"));

// 004:209 to 213.
(({ console }) => {
const ws = new WebSocket(`ws://localhost:8000/progress/ws/${jobId}`);
ws.onmessage = (event) => {
    const data = JSON.parse(event.data);
    console.log(`Status: ${data.status}, Progress: ${data.progress}%`);
};
ws.addEventListener("open", () => told("004", "open"));
})({ console: { log: (text) => told("004", "log", text) } });

// 000 has no client in it: this one says what its protocol has (000:171 to 204).
(() => {
  const ws = new WebSocket(`ws://localhost:8000/ws/upload-progress?token=${token}`);
  ws.onopen = () => {
    told("000", "open");
    ws.send(JSON.stringify({ type: "subscribe_session", session_id: uploadId, token }));
    ws.send(JSON.stringify({ type: "get_stats" }));
    ws.send(JSON.stringify({ type: "ping" }));
  };
  ws.onmessage = (event) => {
    const { event_type, data } = JSON.parse(event.data);
    told("000", event_type, data.percentage);
  };
})();
