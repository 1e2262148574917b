/* Opens WebSockets and counts what arrives on each: the receiving end of the runs.
 *
 * Understands server frames only as far as counting takes; answers pings, of the protocol and
 * of Engine.IO, since a peer that hears no answer would close. Counts go to a shared file of
 * 64-bit words, so that reading them costs this process nothing: word 0 sockets that closed,
 * 1 text frames in all, 2 and 3 when it began to open sockets and when all were open (ns of
 * CLOCK_MONOTONIC), words 4.. text frames of each socket.
 *
 * Usage: sockets PORT SPEECH OPENINGS_FILE COUNTS_FILE [LOG_FILE]
 *   SPEECH         `plain`: every text frame counts; `socketio`: joins the default namespace,
 *                  events count; `centrifugo`: its unidirectional JSON, publications count.
 *   OPENINGS_FILE  One line a socket: the target, and after a tab a header line if there is one.
 *   LOG_FILE       Where to write `bytes_sent` of each counted frame: word 0 how many records,
 *                  then three words each: number of the socket, value, ns of its arrival.
 * Prints "ready" once all are open. Without a log it rests 0.3 ms before each look.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { CLOSED, FRAMES, BEGUN, OPENED, EACH };
enum { AT_ONCE = 64, KEPT = 512 };

struct peer {
  int fd;
  int have;                   /* bytes of the frame head that is being read */
  int kept;                   /* bytes of its payload that are in `text` */
  unsigned char head[10];
  uint64_t left;              /* payload bytes still to come */
  char text[KEPT + 1];        /* the payload's beginning */
};

static volatile uint64_t *counts, *log_words;
static uint64_t log_room;
static unsigned char buffer[1 << 18];
static const char *speech;

static void fail(const char *what) { perror(what); exit(1); }

static uint64_t now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return (uint64_t)at.tv_sec * 1000000000 + at.tv_nsec;
}

/* Sends a short frame, masked with zeros: that is a mask as good as any here. */
static void say(struct peer *p, int opcode, const char *text, size_t n) {
  unsigned char frame[6 + 125] = {0x80 | opcode, 0x80 | n};
  if (n > 125) return;
  memcpy(frame + 6, text, n);
  if (send(p->fd, frame, 6 + n, MSG_NOSIGNAL) < 0) return; /* it closes: recv will tell */
}

static int counted(struct peer *p) {
  if (*speech == 's') {
    if (p->text[0] == '0') say(p, 1, "40", 2);
    if (p->text[0] == '2') say(p, 1, "3", 1);
    return !strncmp(p->text, "42", 2);
  }
  if (*speech == 'c') return strstr(p->text, "\"pub\"") != NULL;
  return 1;
}

static void note(struct peer *p, int index) {
  const char *at = strstr(p->text, "\"bytes_sent\":");
  uint64_t n = log_words[0];
  if (!at || n >= log_room) return;
  volatile uint64_t *record = log_words + 1 + 3 * n;
  record[0] = index;
  record[1] = strtoull(at + 13, NULL, 10);
  record[2] = now();
  log_words[0] = n + 1;
}

static void end_of_frame(struct peer *p, int index) {
  int opcode = p->head[0] & 0x0f;
  p->text[p->kept] = 0;
  if (opcode == 9) say(p, 10, p->text, p->kept);
  if (opcode == 1 && counted(p)) {
    counts[FRAMES]++;
    counts[EACH + index]++;
    if (log_words) note(p, index);
  }
  p->have = p->kept = 0;
}

static int head_length(const struct peer *p) {
  if (p->have < 2) return 2;
  int size = p->head[1] & 0x7f;
  return size == 127 ? 10 : size == 126 ? 4 : 2;
}

static void end_of_head(struct peer *p, int index) {
  int need = head_length(p);
  p->left = need == 2 ? p->head[1] & 0x7f : 0;
  for (int i = 2; i < need; i++) p->left = p->left << 8 | p->head[i];
  if (!p->left) end_of_frame(p, index);
}

static void take(struct peer *p, int index, const unsigned char *at, size_t n) {
  while (n) {
    if (p->left) {
      size_t piece = n < p->left ? n : p->left;
      size_t keep = piece < (size_t)(KEPT - p->kept) ? piece : (size_t)(KEPT - p->kept);
      memcpy(p->text + p->kept, at, keep);
      p->kept += keep; p->left -= piece; at += piece; n -= piece;
      if (!p->left) end_of_frame(p, index);
      continue;
    }
    p->head[p->have++] = *at++; n--;
    if (p->have >= 2 && p->have == head_length(p)) end_of_head(p, index);
  }
}

static void ask(struct peer *p, int port, char *line) {
  char text[4096], *header = strchr(line, '\t');
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (header) *header++ = 0;
  p->fd = socket(AF_INET, SOCK_STREAM, 0);
  if (p->fd < 0 || connect(p->fd, (struct sockaddr *)&to, sizeof to)) fail("connect");
  int n = snprintf(text, sizeof text,
    "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%s%s\r\n",
    line, port, header ? header : "", header ? "\r\n" : "");
  if (write(p->fd, text, n) != n) fail("write");
}

static void be_answered(struct peer *p, int index) {
  char text[4096], *end = NULL;
  int have = 0;
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
  if (*speech == 'c') say(p, 1, "{\"subs\":{\"bench\":{}}}", 21);
  end += 4;
  take(p, index, (unsigned char *)end, have - (end - text));
}

static char **read_lines(const char *name, int *n) {
  FILE *file = fopen(name, "r");
  if (!file) fail(name);
  char **lines = NULL, *line = NULL;
  size_t room = 0;
  ssize_t got;
  for (*n = 0; (got = getline(&line, &room, file)) > 0; line = NULL, room = 0) {
    if (line[got - 1] == '\n') line[got - 1] = 0;
    lines = realloc(lines, (*n + 1) * sizeof *lines);
    lines[(*n)++] = line;
  }
  fclose(file);
  return lines;
}

static volatile uint64_t *shared(const char *name, uint64_t *words) {
  struct stat about;
  int file = open(name, O_RDWR);
  if (file < 0 || fstat(file, &about)) fail(name);
  *words = about.st_size / sizeof(uint64_t);
  void *at = mmap(NULL, about.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (at == MAP_FAILED) fail("mmap");
  return at;
}

static struct peer *open_all(int port, char **lines, int n, int poll) {
  struct peer *peers = calloc(n, sizeof *peers);
  counts[BEGUN] = now();
  for (int from = 0; from < n; from += AT_ONCE) {
    int to = from + AT_ONCE < n ? from + AT_ONCE : n;
    for (int i = from; i < to; i++) ask(&peers[i], port, lines[i]);
    for (int i = from; i < to; i++) {
      struct epoll_event wanted = {.events = EPOLLIN, .data.u32 = i};
      be_answered(&peers[i], i);
      if (epoll_ctl(poll, EPOLL_CTL_ADD, peers[i].fd, &wanted)) fail("epoll_ctl");
    }
  }
  counts[OPENED] = now();
  return peers;
}

int main(int argc, char **argv) {
  if (argc < 5) {
    fprintf(stderr, "usage: sockets PORT SPEECH OPENINGS_FILE COUNTS_FILE [LOG_FILE]\n");
    return 2;
  }
  int n, poll = epoll_create1(0);
  uint64_t words;
  speech = argv[2];
  char **lines = read_lines(argv[3], &n);
  counts = shared(argv[4], &words);
  if (words < EACH + (uint64_t)n) { fprintf(stderr, "the file of counts is too short\n"); return 2; }
  if (argc > 5) {
    log_words = shared(argv[5], &log_room);
    log_room = (log_room - 1) / 3;
  }
  struct peer *peers = open_all(atoi(argv[1]), lines, n, poll);
  puts("ready");
  fflush(stdout);
  struct epoll_event due[512];
  /* Asleep in epoll_wait it would be woken by the server, at the server's cost, and only by one
   * that is not always busy. Real clients are on other machines. */
  const struct timespec nap = {.tv_nsec = 300000};
  for (;;) {
    if (!log_words) nanosleep(&nap, NULL);
    int k = epoll_wait(poll, due, 512, -1);
    for (int i = 0; i < k; i++) {
      int index = due[i].data.u32;
      ssize_t got = recv(peers[index].fd, buffer, sizeof buffer, MSG_DONTWAIT);
      if (got > 0) take(&peers[index], index, buffer, got);
      else if (got == 0) { close(peers[index].fd); counts[CLOSED]++; }
    }
  }
}
