/* Bound of fan-out: one send() a socket and frame, and nothing else.
 *
 * Accepts N sockets, answers each handshake without looking at it, then sends the same frame
 * to one socket after another until it is ended. TCP_NODELAY is on, as in asyncio and uvloop:
 * otherwise the kernel would join frames and the bound would count sends that never left.
 *
 * Usage: fanout PORT N PAYLOAD_FILE
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char ANSWER[] =
  "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
  "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

static void fail(const char *what) { perror(what); exit(1); }

static int accept_one(int listener) {
  char text[4096];
  int have = 0, on = 1, fd = accept(listener, NULL, NULL);
  if (fd < 0) fail("accept");
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  do {
    ssize_t got = read(fd, text + have, sizeof text - 1 - have);
    if (got <= 0) { close(fd); return accept_one(listener); } /* a probe for readiness */
    have += got; text[have] = 0;
  } while (!strstr(text, "\r\n\r\n"));
  if (write(fd, ANSWER, sizeof ANSWER - 1) < 0) fail("write");
  return fd;
}

static size_t read_frame(const char *name, unsigned char *frame, size_t room) {
  FILE *file = fopen(name, "rb");
  if (!file) fail(name);
  size_t n = fread(frame + 4, 1, room - 4, file);
  fclose(file);
  frame[2] = n >> 8; frame[3] = n & 0xff;
  if (n >= 126) { frame[0] = 0x81; frame[1] = 126; return n + 4; }
  memmove(frame + 2, frame + 4, n);
  frame[0] = 0x81; frame[1] = n;
  return n + 2;
}

int main(int argc, char **argv) {
  if (argc != 4) { fprintf(stderr, "usage: fanout PORT N PAYLOAD_FILE\n"); return 2; }
  static unsigned char frame[65536];
  size_t size = read_frame(argv[3], frame, sizeof frame);
  int n = atoi(argv[2]), on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 1024)) fail("bind");
  int *sockets = calloc(n, sizeof *sockets);
  for (int i = 0; i < n; i++) sockets[i] = accept_one(listener);
  for (;;)
    for (int i = 0; i < n; i++)
      if (send(sockets[i], frame, size, MSG_NOSIGNAL) < 0) return 0; /* the load has ended */
}
