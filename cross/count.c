// Counts instructions: a plugin of qemu-user, whose interface has no header in Debian. The names and
// types are those of version 1 of that interface, QEMU 4.2 to 8.
#include <inttypes.h>
#include <stdio.h>

typedef uint64_t id;
struct block;
enum operation { ADD };

size_t qemu_plugin_tb_n_insns(const struct block *);
void qemu_plugin_register_vcpu_tb_trans_cb(id, void (*)(id, struct block *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct block *, enum operation, void *, uint64_t);
void qemu_plugin_register_atexit_cb(id, void (*)(id, void *), void *);

#define EXPORT __attribute__((visibility("default")))

EXPORT int qemu_plugin_version = 1;

// Threads that count at the same time lose some; the program that is counted has one.
static uint64_t count;

static void translated(id self, struct block *block) {
  (void)self;
  qemu_plugin_register_vcpu_tb_exec_inline(block, ADD, &count, qemu_plugin_tb_n_insns(block));
}

static void ended(id self, void *data) {
  (void)self, (void)data;
  fprintf(stderr, "instructions: %" PRIu64 "\n", count);
}

EXPORT int qemu_plugin_install(id self, const void *info, int argc, char **argv) {
  (void)info, (void)argc, (void)argv;
  qemu_plugin_register_vcpu_tb_trans_cb(self, translated);
  qemu_plugin_register_atexit_cb(self, ended, NULL);
  return 0;
}
