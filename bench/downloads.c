/* Downloads over kept-alive connections and drops the bytes: the receiving end of the runs.
 *
 * Understands HTTP/1.1 only as far as counting takes: the status, Content-Length, the length of
 * the body. Bodies are not copied out of the kernel (MSG_TRUNC), so that this process is no
 * bound of what is measured.
 *
 * Usage: downloads PORT PATH CONNECTIONS REQUESTS [SPAN SIZE]
 *   REQUESTS    how many in all, as the connections get to them
 *   SPAN, SIZE  each asks for so many bytes at a random place of a file of that size
 * Prints seconds from the first request to the last byte, bytes of bodies, seconds of CPU.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { AT_ONCE = 64, HEAD = 8192, PIECE = 1 << 20 };

struct client {
  int fd;
  int have;          /* bytes of the response head that are there */
  int64_t left;      /* bytes of the body still to come; -1: the head is being read */
  char head[HEAD];
};

static const char *path;
static long unasked, unanswered;
static uint64_t span, size, total, seed = 88172645463325252ull;

static void fail(const char *what) { perror(what); exit(1); }

static double seconds(clockid_t of) {
  struct timespec at;
  clock_gettime(of, &at);
  return at.tv_sec + at.tv_nsec / 1e9;
}

static uint64_t chance(void) {  /* xorshift64: the same places in each run */
  seed ^= seed << 13;
  seed ^= seed >> 7;
  return seed ^= seed << 17;
}

static void ask(struct client *c) {
  char text[1024];
  int n = snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n", path);
  if (!unasked) return;
  unasked--;
  if (span) {
    uint64_t start = chance() % (size - span + 1);
    n += snprintf(text + n, sizeof text - n, "Range: bytes=%llu-%llu\r\n",
                  (unsigned long long)start, (unsigned long long)(start + span - 1));
  }
  n += snprintf(text + n, sizeof text - n, "\r\n");
  c->have = 0;
  c->left = -1;
  if (send(c->fd, text, n, 0) != n) fail("send");
}

/* Reads as much of the head as there is; keeps nothing of the body. */
static void read_head(struct client *c) {
  int n = recv(c->fd, c->head + c->have, HEAD - 1 - c->have, MSG_PEEK | MSG_DONTWAIT);
  char *end, *length;
  if (n <= 0) fail("the connection was closed");
  c->head[c->have + n] = 0;
  end = strstr(c->head, "\r\n\r\n");
  if (end) n = end + 4 - c->head - c->have;
  if (recv(c->fd, c->head + c->have, n, 0) != n) fail("recv");
  c->have += n;
  if (!end) return;
  end[2] = 0;
  length = strcasestr(c->head, "\r\nContent-Length:");
  if (strncmp(c->head, span ? "HTTP/1.1 206 " : "HTTP/1.1 200 ", 13) || !length) {
    fprintf(stderr, "unexpected: %s\n", c->head);
    exit(1);
  }
  c->left = atoll(length + 17);
  total += c->left;
}

static void serve(struct client *c) {
  for (;;) {
    if (c->left < 0) {
      read_head(c);
      if (c->left < 0) return;
    }
    while (c->left > 0) {
      size_t wanted = c->left < PIECE ? (size_t)c->left : PIECE;
      ssize_t n = recv(c->fd, NULL, wanted, MSG_TRUNC | MSG_DONTWAIT);
      if (n < 0) return;
      if (n == 0) fail("the connection was closed in a body");
      c->left -= n;
    }
    unanswered--;
    ask(c);
    return;
  }
}

int main(int argc, char **argv) {
  struct sockaddr_in to = {.sin_family = AF_INET};
  int i, count, poll = epoll_create1(0), one = 1;
  struct client *clients;
  double begun;
  if (argc != 5 && argc != 7) {
    fprintf(stderr, "usage: downloads PORT PATH CONNECTIONS REQUESTS [SPAN SIZE]\n");
    return 2;
  }
  to.sin_port = htons(atoi(argv[1]));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  path = argv[2];
  count = atoi(argv[3]);
  unasked = unanswered = atol(argv[4]);
  if (argc == 7) {
    span = strtoull(argv[5], NULL, 10);
    size = strtoull(argv[6], NULL, 10);
  }
  clients = calloc(count, sizeof *clients);
  for (i = 0; i < count; i++) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &clients[i]};
    int fd = clients[i].fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&to, sizeof to)) fail("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
  }
  begun = seconds(CLOCK_MONOTONIC);
  for (i = 0; i < count; i++) ask(&clients[i]);
  while (unanswered > 0) {
    struct epoll_event events[AT_ONCE];
    int n = epoll_wait(poll, events, AT_ONCE, -1);
    for (i = 0; i < n; i++) serve(events[i].data.ptr);
  }
  printf("%f %llu %f\n", seconds(CLOCK_MONOTONIC) - begun, (unsigned long long)total,
         seconds(CLOCK_PROCESS_CPUTIME_ID));
  return 0;
}
