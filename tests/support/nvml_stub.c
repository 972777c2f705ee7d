/* As much of NVML as the real pynvml asks for here, with the layouts of the real one.
 *
 * STUB_NVML says how it behaves: words joined by commas, each for the machine or all its GPUs, or with a colon for one
 * of them (lost:1). STUB_NVML_COUNT is the number of GPUs, STUB_NVML_DRIVER the version of the driver. Compiled with
 * -DOLD it lacks what came with driver 510 and later, with -DOLDEST also what came with 450.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
typedef unsigned int u32;
typedef unsigned long long u64;
typedef struct { char legacy[16]; u32 domain, bus, device, id, subsystem; char busId[32]; } Pci;
typedef struct { u64 total, free, used; } Memory;
typedef struct { u32 version; u64 total, reserved, free, used; } Memory2;
typedef struct { u32 gpu, memory; } Utilization;
typedef struct { u32 id, scope; u64 time, latency; int type, result; u64 value; } Field;
typedef struct { u32 processors, copy, decoder, encoder, jpeg, ofa, slices, computeSlices; u64 memory; } Attributes;
typedef struct { u32 pid; u64 memory; u32 gpuInstance, computeInstance; } Process;
typedef struct { Process process; u64 protected; } LongProcess;
typedef struct { u32 gpuInstance, computeInstance, slices, computeSlices; u64 memory, used; const char *profile; } Instance;

enum { INVALID = 2, UNSUPPORTED = 3, PERMISSION = 4, MISSING = 6, SMALL = 7, LOST = 15, RESET = 16, UNKNOWN = 999 };
#define MIB 1048576ULL
#define RESERVED (500 * MIB)
#define USED (300 * MIB + 1)
#define SLOTS 7

/* Two compute instances in one slice, a hole, and what is not even a slot. */
static const Instance instances[SLOTS] = {
    {1, 0, 3, 1, 19968, 26, "1c.3g.20gb"}, {1, 1, 3, 1, 19968, 26, "1c.3g.20gb"}, {0},
    {9, 0, 1, 1, 4864, 9, "1g.5gb"}, {.computeInstance = INVALID}, {3, 0, 2, 2, 9856, 0, "2g.10gb"}, {0},
};

static int said(const char *word) {
    const char *now = getenv("STUB_NVML");
    size_t length = strlen(word);
    for (; now; now = strchr(now, ','), now += now != NULL)
        if (!strncmp(now, word, length) && (!now[length] || now[length] == ',')) return 1;
    return 0;
}
static u32 number(void *handle) { return ((u32)(size_t)handle & 255) - 1; }
static int slot(void *handle) { return (int)((size_t)handle >> 8) - 1; }
static const Instance *instance(void *handle) { return slot(handle) < 0 ? NULL : &instances[slot(handle)]; }
static int on(void *handle, const char *word) {
    char one[64];
    snprintf(one, sizeof one, "%s:%u", word, number(handle));
    return said(word) || said(one);
}
static void identify(char *busId, u32 gpu) { snprintf(busId, 32, "0000F00%u:0A:00.0", gpu); }

int nvmlInitWithFlags(u32 flags) {
    if (said("chatty")) for (int i = 0; i < 20000; i++) {
        puts("a line of about fifty characters, as this one is");
        fputs("a line of about fifty characters, as this one is\n", stderr);
    }
    if (said("hang")) for (;;) sleep(600);
    if (said("slow")) usleep(300000);
    if (said("crash")) raise(SIGSEGV);
    return said("permission") ? PERMISSION : said("driver") ? 9 : said("blocked") ? 17 : said("mismatch") ? 18
        : said("nogpu") ? 28 : said("unknown") ? UNKNOWN : 0;
}
int nvmlShutdown(void) { if (said("crash late")) raise(SIGSEGV); return 0; }
int nvmlSystemGetDriverVersion(char *version, u32 size) {
    const char *driver = getenv("STUB_NVML_DRIVER");
    snprintf(version, size, "%s", driver ? driver : "590.48.01");
    return said("no version") ? UNKNOWN : 0;
}
int nvmlDeviceGetCount_v2(u32 *count) { *count = atoi(getenv("STUB_NVML_COUNT")); return said("no count") ? UNKNOWN : 0; }
int nvmlDeviceGetHandleByIndex_v2(u32 index, void **handle) {
    *handle = (void *)(size_t)(index + 1);
    if (on(*handle, "stuck")) for (;;) sleep(600);
    if (on(*handle, "crash")) raise(SIGSEGV);
    return on(*handle, "lost") ? LOST : on(*handle, "forbidden") ? PERMISSION : 0;
}
int nvmlDeviceGetUUID(void *h, char *uuid, u32 size) {
    if (instance(h)) snprintf(uuid, size, "MIG-%08u-0000-0000-0000-%012u", slot(h), number(h));
    else snprintf(uuid, size, "GPU-00000000-0000-0000-0000-%012u", on(h, "twin") ? 0 : number(h));
    if (instance(h) && slot(h) == 3) return on(h, "instance destroyed") ? INVALID : on(h, "no instance uuid") ? MISSING : 0;
    return on(h, "no uuid") ? UNKNOWN : 0;
}
int nvmlDeviceGetName(void *h, char *name, u32 size) {
    snprintf(name, size, "NVIDIA A100-SXM4-40GB");
    if (instance(h) && !on(h, "no profile")) snprintf(name, size, "NVIDIA A100-SXM4-40GB MIG %s", instance(h)->profile);
    if (on(h, "no text")) snprintf(name, size, "\xff");
    return 0;
}
int nvmlDeviceGetPciInfo_v3(void *h, Pci *pci) {
    identify(pci->busId, number(h));
    snprintf(pci->legacy, 16, "F00%u:0A:00.0", number(h));
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *h, Memory *memory) {
    memory->total = instance(h) ? instance(h)->memory * MIB : 40960 * MIB;
    memory->used = instance(h) ? instance(h)->used * MIB : USED + RESERVED;
    memory->free = memory->total - memory->used;
    return on(h, "unified") ? UNSUPPORTED : on(h, "container") && !instance(h) ? PERMISSION : on(h, "no memory") ? UNKNOWN : 0;
}
int nvmlDeviceGetComputeMode(void *h, int *mode) {
    *mode = on(h, "prohibited") ? 2 : on(h, "exclusive") ? 3 : 0;
    return on(h, "mig") && !instance(h) ? INVALID : 0;
}
int nvmlDeviceGetUtilizationRates(void *h, Utilization *utilization) {
    utilization->gpu = utilization->memory = 0;
    return on(h, "reset") ? RESET : on(h, "mig") ? UNSUPPORTED : 0;
}
int nvmlDeviceGetFieldValues(void *h, int count, Field *field) {
    field->result = field->id != 230 || on(h, "driver of 2023") ? INVALID : 0;
    field->value = on(h, "drain") ? 3 : on(h, "recovery") || on(h, "driver of 2023");
    return 0;
}
int nvmlDeviceGetTemperature(void *h, int sensor, u32 *degrees) { *degrees = 30; return on(h, "cold") ? RESET : 0; }

/* Processes: asked first for their number, then for themselves. */
static int processes(void *h, u32 *count, char *rows) {
    const char *driver = getenv("STUB_NVML_DRIVER");
    int is_long = driver && !strncmp(driver, "535.54", 6);
    u32 room = *count, there = on(h, "busy") ? 2 : 0;
    LongProcess found[2] = {{{4711, 2566 * MIB, ~0u, ~0u}, 0}, {{4712, ~0ULL, ~0u, ~0u}, 0}};
    if (on(h, "no processes")) return UNSUPPORTED;
    if (on(h, "private")) return PERMISSION;
    *count = there;
    if (room < there) return SMALL;
    for (u32 i = 0; i < there; i++) {
        size_t size = is_long ? sizeof(LongProcess) : sizeof(Process);
        memcpy(rows + i * size, &found[i], size);
    }
    return 0;
}
#ifndef OLDEST
int nvmlDeviceGetComputeRunningProcesses_v2(void *h, u32 *count, void *rows) { return processes(h, count, rows); }

/* MIG. */
int nvmlDeviceGetMigMode(void *h, u32 *now, u32 *next) {
    *now = *next = on(h, "mig");
    return on(h, "unified") ? UNSUPPORTED : 0;
}
int nvmlDeviceGetMaxMigDeviceCount(void *h, u32 *count) { *count = SLOTS; return on(h, "no slots") ? UNKNOWN : 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *h, u32 index, void **handle) {
    *handle = (void *)((size_t)h | (size_t)(index + 1) << 8);
    if (on(h, "no instances")) return MISSING;
    if (on(h, "bad slots") || (on(h, "bad slot") && index == 3)) return UNKNOWN;
    return instances[index].profile ? 0 : instances[index].computeInstance ? INVALID : MISSING;
}
int nvmlDeviceGetGpuInstanceId(void *h, u32 *id) { *id = instance(h) ? instance(h)->gpuInstance : 0; return instance(h) ? 0 : INVALID; }
int nvmlDeviceGetComputeInstanceId(void *h, u32 *id) { *id = instance(h) ? instance(h)->computeInstance : 0; return instance(h) ? 0 : INVALID; }
int nvmlDeviceGetAttributes_v2(void *h, Attributes *attributes) {
    if (!instance(h) || on(h, "no attributes")) return UNSUPPORTED;
    attributes->slices = instance(h)->slices;
    attributes->computeSlices = instance(h)->computeSlices;
    attributes->memory = instance(h)->memory;
    return 0;
}
#endif
#ifndef OLD
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, u32 *count, void *rows) { return processes(h, count, rows); }
int nvmlDeviceGetMemoryInfo_v2(void *h, Memory2 *memory) {
    Memory old;
    int result = nvmlDeviceGetMemoryInfo(h, &old);
    if (memory->version != (sizeof(Memory2) | 2 << 24)) return 25;
    memory->total = old.total;
    memory->free = old.free;
    memory->reserved = instance(h) ? 0 : RESERVED;
    memory->used = old.used - memory->reserved;
    return result;
}
int nvmlDeviceGetNvLinkRemoteDeviceType(void *h, u32 link, u32 *type) {
    *type = on(h, "nvswitch") ? 2 : on(h, "power") ? 1 : 0;
    return 0;
}
#endif

/* Links: by PCIe the farther the more GPUs lie between; by NVLink two to the neighbour and one to the one after. */
int nvmlDeviceGetTopologyCommonAncestor(void *one, void *other, u32 *level) {
    int between = abs((int)number(one) - (int)number(other)) - 1;
    *level = between < 5 ? 10 * between : 50;
    return on(one, "no topology") || on(other, "no topology") ? UNKNOWN : 0;
}
int nvmlDeviceGetNvLinkState(void *h, u32 link, u32 *active) {
    if (on(h, "nvswitch")) { *active = link < (on(h, "few links") ? 10 : 12); return link < 12 ? 0 : INVALID; }
    if (!on(h, "nvlink") && !on(h, "power")) return UNSUPPORTED;
    *active = link < 3;
    return link < 4 ? 0 : INVALID;
}
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *h, u32 link, Pci *pci) {
    if (on(h, "nvswitch") || on(h, "power")) snprintf(pci->busId, 32, "00000004:0%u:00.0", link);
    else identify(pci->busId, number(h) ^ (link < 2 ? 1 : 2));
    return 0;
}
