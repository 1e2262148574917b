/* Opens N WebSockets and counts what arrives on each: the receiving end of the fan-out runs.
 *
 * Understands server frames only as far as counting takes, and answers no ping: a run is
 * shorter than a ping interval. Counts go to a shared file of 64-bit words, so that reading
 * them costs this process nothing: word 0 sockets that closed, word 1 text frames in all,
 * words 2.. text frames of each socket.
 *
 * Usage: sockets PORT PATH N COUNTS_FILE      Prints "ready" once all are open.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

struct peer {
  int fd;
  int have;              /* bytes of the frame head that is being read */
  unsigned char head[10];
  uint64_t left;         /* payload bytes still to come */
};

static volatile uint64_t *counts;
static unsigned char buffer[1 << 18];

static void fail(const char *what) { perror(what); exit(1); }

static int head_length(const struct peer *p) {
  if (p->have < 2) return 2;
  int size = p->head[1] & 0x7f;
  return size == 127 ? 10 : size == 126 ? 4 : 2;
}

static void end_of_head(struct peer *p, int index) {
  int need = head_length(p);
  p->left = 0;
  if (need == 2) p->left = p->head[1] & 0x7f;
  for (int i = 2; i < need; i++) p->left = p->left << 8 | p->head[i];
  p->have = 0;
  if ((p->head[0] & 0x0f) == 1) { counts[1]++; counts[2 + index]++; }
}

static void take(struct peer *p, int index, const unsigned char *at, size_t n) {
  while (n) {
    if (p->left) {
      size_t skip = n < p->left ? n : p->left;
      p->left -= skip; at += skip; n -= skip;
      continue;
    }
    p->head[p->have++] = *at++; n--;
    if (p->have >= 2 && p->have == head_length(p)) end_of_head(p, index);
  }
}

static void open_one(struct peer *p, int index, int port, const char *path) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  p->fd = socket(AF_INET, SOCK_STREAM, 0);
  if (p->fd < 0 || connect(p->fd, (struct sockaddr *)&to, sizeof to)) fail("connect");
  char text[4096];
  int n = snprintf(text, sizeof text,
    "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    path, port);
  if (write(p->fd, text, n) != n) fail("write");
  int have = 0;
  char *end = NULL;
  while (!end) {
    ssize_t got = read(p->fd, text + have, sizeof text - 1 - have);
    if (got <= 0) fail("handshake");
    have += got; text[have] = 0;
    end = strstr(text, "\r\n\r\n");
  }
  if (strncmp(text, "HTTP/1.1 101", 12)) {
    fprintf(stderr, "refused: %.60s\n", text);
    exit(1);
  }
  end += 4;
  take(p, index, (unsigned char *)end, have - (end - text));
}

int main(int argc, char **argv) {
  if (argc != 5) { fprintf(stderr, "usage: sockets PORT PATH N COUNTS_FILE\n"); return 2; }
  int n = atoi(argv[3]), file = open(argv[4], O_RDWR);
  size_t size = (2 + (size_t)n) * sizeof *counts;
  if (file < 0 || ftruncate(file, size)) fail(argv[4]);
  counts = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (counts == MAP_FAILED) fail("mmap");
  struct peer *peers = calloc(n, sizeof *peers);
  int poll = epoll_create1(0);
  for (int i = 0; i < n; i++) {
    open_one(&peers[i], i, atoi(argv[1]), argv[2]);
    struct epoll_event ask = {.events = EPOLLIN, .data.u32 = i};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, peers[i].fd, &ask)) fail("epoll_ctl");
  }
  puts("ready");
  fflush(stdout);
  struct epoll_event due[512];
  for (;;) {
    int k = epoll_wait(poll, due, 512, -1);
    for (int i = 0; i < k; i++) {
      int index = due[i].data.u32;
      ssize_t got = recv(peers[index].fd, buffer, sizeof buffer, MSG_DONTWAIT);
      if (got > 0) take(&peers[index], index, buffer, got);
      else if (got == 0) { close(peers[index].fd); counts[0]++; }
    }
  }
}
